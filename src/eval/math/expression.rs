//! A parsed answer: a tree with flat sums, products, and lists, so that its depth is bounded by the nesting
//! of the text rather than by its length.

use num_rational::BigRational;
use std::collections::BTreeSet;

/// A constant with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Constant {
    /// π.
    Pi,
    /// Euler's number.
    Euler,
    /// The imaginary unit.
    Imaginary,
    /// ∞, which equals only itself.
    Infinity,
}

/// A function of one argument, except [`Function::Log`] and [`Function::Binomial`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Function {
    Sin,
    Cos,
    Tan,
    Cot,
    Sec,
    Csc,
    Arcsin,
    Arccos,
    Arctan,
    Sinh,
    Cosh,
    Tanh,
    Exp,
    Ln,
    /// The logarithm to base 10.
    CommonLog,
    /// Argument and base.
    Log,
    Absolute,
    Floor,
    Ceiling,
    Factorial,
    /// The number of chosen elements, and the number to choose from.
    Binomial,
    Determinant,
}

/// A bracket of an interval or tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bracket {
    /// `(` or `)`.
    Round,
    /// `[` or `]`.
    Square,
}

/// A relation between two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Relation {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    Approximately,
    Congruent,
    In,
}

impl Relation {
    /// Returns the relation seen from the other side.
    pub fn mirrored(self) -> Self {
        match self {
            Self::Less => Self::Greater,
            Self::LessEqual => Self::GreaterEqual,
            Self::Greater => Self::Less,
            Self::GreaterEqual => Self::LessEqual,
            other => other,
        }
    }
}

/// The conjunction between the answers of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joiner {
    /// A comma, a semicolon or "and".
    And,
    /// "or".
    Or,
}

/// An answer or a part of one.
#[derive(Clone, Debug, PartialEq)]
pub enum Expression {
    /// An exact number and the decimals that it was written with.
    Number(BigRational, u32),
    /// An integer written in another base: its digits and the base.
    Based(String, u32),
    /// π, e, i or ∞.
    Constant(Constant),
    /// A variable, with its subscript if any, or a word.
    Variable(String),
    /// Terms added up.
    Sum(Vec<Expression>),
    /// Factors multiplied.
    Product(Vec<Expression>),
    /// A fraction.
    Quotient(Box<Expression>, Box<Expression>),
    /// The negative of something.
    Negative(Box<Expression>),
    /// Plus or minus something; `true` for ∓, which takes the sign that ± does not.
    PlusMinus(bool, Box<Expression>),
    /// Base and exponent.
    Power(Box<Expression>, Box<Expression>),
    /// Radicand and index.
    Root(Box<Expression>, Box<Expression>),
    /// A function and its arguments.
    Function(Function, Vec<Expression>),
    /// A percentage.
    Percent(Box<Expression>),
    /// An angle in degrees.
    Degrees(Box<Expression>),
    /// A value with a unit or another note after it.
    Unit(Box<Expression>, String),
    /// `2:3:5`.
    Ratio(Vec<Expression>),
    /// A tuple or an interval.
    Bracketed(Bracket, Vec<Expression>, Bracket),
    /// A set by its elements.
    Set(Vec<Expression>),
    /// A set by a condition on its elements.
    SetWhere(Box<Expression>, Box<Expression>),
    /// A union of sets.
    Union(Vec<Expression>),
    /// An intersection of sets.
    Intersection(Vec<Expression>),
    /// A set difference.
    Without(Box<Expression>, Box<Expression>),
    /// Rows of a matrix.
    Matrix(Vec<Vec<Expression>>),
    /// A chain of equations or inequalities, with one more side than relations.
    Chain(Vec<Expression>, Vec<Relation>),
    /// Several answers.
    List(Vec<Expression>, Joiner),
}

impl Expression {
    /// Returns an integer.
    pub fn integer(value: i64) -> Self {
        Self::Number(BigRational::from_integer(value.into()), 0)
    }

    /// Returns the direct parts of the expression.
    pub fn parts(&self) -> Vec<&Expression> {
        match self {
            Self::Number(..) | Self::Based(..) | Self::Constant(_) | Self::Variable(_) => vec![],
            Self::Sum(parts)
            | Self::Product(parts)
            | Self::Function(_, parts)
            | Self::Ratio(parts)
            | Self::Bracketed(_, parts, _)
            | Self::Set(parts)
            | Self::Union(parts)
            | Self::Intersection(parts)
            | Self::Chain(parts, _)
            | Self::List(parts, _) => parts.iter().collect(),
            Self::Matrix(rows) => rows.iter().flatten().collect(),
            Self::Quotient(a, b)
            | Self::Power(a, b)
            | Self::Root(a, b)
            | Self::SetWhere(a, b)
            | Self::Without(a, b) => vec![a, b],
            Self::Negative(a)
            | Self::PlusMinus(_, a)
            | Self::Percent(a)
            | Self::Degrees(a)
            | Self::Unit(a, _) => vec![a],
        }
    }

    /// Returns the number of nodes, including itself.
    pub fn size(&self) -> u64 {
        1 + self.parts().into_iter().map(Self::size).sum::<u64>()
    }

    /// Returns whether `test` holds for the expression or any part of it.
    pub fn any(&self, test: &dyn Fn(&Expression) -> bool) -> bool {
        test(self) || self.parts().into_iter().any(|part| part.any(test))
    }

    /// Returns the names of its variables.
    pub fn variables(&self) -> BTreeSet<&str> {
        let mut names = BTreeSet::new();
        self.collect_variables(&mut names);
        names
    }

    fn collect_variables<'a>(&'a self, names: &mut BTreeSet<&'a str>) {
        if let Self::Variable(name) = self {
            names.insert(name);
        }
        for part in self.parts() {
            part.collect_variables(names);
        }
    }

    /// Returns whether it consists only of arithmetic, so that it is a number once its variables have values.
    pub fn is_scalar(&self) -> bool {
        !self.any(&|part| {
            matches!(
                part,
                Self::Based(..)
                    | Self::Ratio(_)
                    | Self::Bracketed(..)
                    | Self::Set(_)
                    | Self::SetWhere(..)
                    | Self::Union(_)
                    | Self::Intersection(_)
                    | Self::Without(..)
                    | Self::Matrix(_)
                    | Self::Chain(..)
                    | Self::List(..)
            )
        })
    }

    /// Returns the maximum number of decimals of any number in it.
    pub fn decimals(&self) -> u32 {
        let own = if let Self::Number(_, decimals) = self { *decimals } else { 0 };
        self.parts().into_iter().map(Self::decimals).max().unwrap_or(0).max(own)
    }
}
