//! Complex numbers in double precision, the values of expressions at random points. They are complex rather
//! than real so that roots of negative numbers can be compared, too.

use std::f64::consts::PI;
use std::ops::{Add, Div, Mul, Neg, Sub};

/// A complex number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Complex {
    /// Real part.
    pub re: f64,
    /// Imaginary part.
    pub im: f64,
}

impl Complex {
    /// 1.
    pub const ONE: Self = Self::new(1.0, 0.0);
    /// The imaginary unit.
    pub const I: Self = Self::new(0.0, 1.0);

    /// Creates a number from its parts.
    pub const fn new(re: f64, im: f64) -> Self {
        Self { re, im }
    }

    /// Its absolute value.
    pub fn norm(self) -> f64 {
        self.re.hypot(self.im)
    }

    /// Returns whether both parts are finite.
    pub fn is_finite(self) -> bool {
        self.re.is_finite() && self.im.is_finite()
    }

    /// Returns the real part, if the imaginary part is only rounding error.
    pub fn real(self) -> Option<f64> {
        (self.im.abs() <= 1e-9 * self.re.abs().max(1e-3)).then_some(self.re)
    }

    /// Returns the exponential.
    pub fn exp(self) -> Self {
        // An angle of zero is a special case, since 0 times an infinite length is NaN.
        let length = self.re.exp();
        let im = if self.im == 0.0 { 0.0 } else { length * self.im.sin() };
        Self::new(length * self.im.cos(), im)
    }

    /// Returns the principal logarithm.
    pub fn ln(self) -> Self {
        Self::new(self.norm().ln(), self.im.atan2(self.re))
    }

    /// Returns the principal power. It is exactly real if the base, the exponent, and the power are real.
    pub fn pow(self, exponent: Self) -> Self {
        if self.norm() == 0.0 && exponent.norm() == 0.0 {
            return Self::new(f64::NAN, 0.0);
        }
        if exponent.im == 0.0 && self.im == 0.0 {
            let whole = exponent.re.fract() == 0.0;
            if self.re >= 0.0 || whole {
                return Self::new(self.re.powf(exponent.re), 0.0);
            }
        }
        if exponent.im == 0.0 && exponent.re.fract() == 0.0 && exponent.re.abs() <= 64.0 {
            let power = (0..exponent.re.abs() as u32).fold(Self::ONE, |power, _| power * self);
            return if exponent.re < 0.0 { Self::ONE / power } else { power };
        }
        if self.norm() == 0.0 {
            return Self::new(if exponent.re > 0.0 { 0.0 } else { f64::NAN }, 0.0);
        }
        (self.ln() * exponent).exp()
    }

    /// Returns the sine.
    pub fn sin(self) -> Self {
        Self::new(self.re.sin() * self.im.cosh(), self.re.cos() * self.im.sinh())
    }

    /// Returns the cosine.
    pub fn cos(self) -> Self {
        Self::new(self.re.cos() * self.im.cosh(), -self.re.sin() * self.im.sinh())
    }

    /// Returns the arcsine.
    pub fn asin(self) -> Self {
        if self.im == 0.0 && self.re.abs() <= 1.0 {
            return Self::new(self.re.asin(), 0.0);
        }
        let root = (Self::ONE - self * self).pow(Self::new(0.5, 0.0));
        let angle = (Self::I * self + root).ln();
        Self::new(angle.im, -angle.re)
    }

    /// Returns the arctangent.
    pub fn atan(self) -> Self {
        if self.im == 0.0 {
            return Self::new(self.re.atan(), 0.0);
        }
        let turned = Self::I * self;
        let difference = (Self::ONE + turned).ln() - (Self::ONE - turned).ln();
        Self::new(difference.im / 2.0, -difference.re / 2.0)
    }

    /// Returns the arccosine.
    pub fn acos(self) -> Self {
        Self::new(PI / 2.0, 0.0) - self.asin()
    }
}

impl Add for Complex {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self::new(self.re + other.re, self.im + other.im)
    }
}

impl Sub for Complex {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self::new(self.re - other.re, self.im - other.im)
    }
}

impl Mul for Complex {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        Self::new(self.re * other.re - self.im * other.im, self.re * other.im + self.im * other.re)
    }
}

impl Div for Complex {
    type Output = Self;
    fn div(self, other: Self) -> Self {
        let square = other.re * other.re + other.im * other.im;
        Self::new(
            (self.re * other.re + self.im * other.im) / square,
            (self.im * other.re - self.re * other.im) / square,
        )
    }
}

impl Neg for Complex {
    type Output = Self;
    fn neg(self) -> Self {
        Self::new(-self.re, -self.im)
    }
}
