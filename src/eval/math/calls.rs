//! Functions with their arguments, and matrices. In `\sin 2x \cos x`, the next function ends the argument of
//! the sine, and `\sin^{-1}` is the inverse.

use super::expression::{Expression, Function, Joiner};
use super::lexer::{Kind, lines_up};
use super::number;
use super::parser::Parser;
use super::words::Meaning;

impl Parser {
    pub(crate) fn function(&mut self, function: Function) -> Option<Expression> {
        let mut arguments = vec![];
        let mut function = function;
        let mut exponent = None;
        for _ in 0..2 {
            if function == Function::Log && self.take(&Kind::Subscript) {
                arguments.push(self.argument()?);
            } else if exponent.is_none() && self.take(&Kind::Power) {
                exponent = Some(self.argument()?);
            }
        }
        // `\sin^{-1}` is the inverse, not the reciprocal.
        let inverse = match function {
            Function::Sin => Some(Function::Arcsin),
            Function::Cos => Some(Function::Arccos),
            Function::Tan => Some(Function::Arctan),
            _ => None,
        };
        if let (Some(inverse), Some(power)) = (inverse, &exponent)
            && number::small_integer(power) == Some(-1)
        {
            function = inverse;
            exponent = None;
        }
        let bracketed = matches!(self.peek(), Some(Kind::GroupOpen | Kind::Sign(Meaning::Open)));
        let mut argument = if bracketed { self.deeper(Self::primary)? } else { self.factor()? };
        if !bracketed {
            let mut factors = vec![argument];
            while let Some(kind) = self.peek() {
                if matches!(kind, Kind::Sign(Meaning::Function(_))) || !self.starts_factor(kind) {
                    break;
                }
                factors.push(self.factor()?);
            }
            argument =
                if factors.len() == 1 { factors.remove(0) } else { Expression::Product(factors) };
        }
        arguments.insert(0, argument);
        if function == Function::Log && arguments.len() == 1 {
            function = Function::Ln;
        }
        let value = Expression::Function(function, arguments);
        Some(match exponent {
            Some(exponent) => Expression::Power(Box::new(value), Box::new(exponent)),
            None => value,
        })
    }

    pub(crate) fn matrix(&mut self, environment: &str) -> Option<Expression> {
        let mut rows = vec![vec![]];
        loop {
            match self.peek()? {
                Kind::End(_) => break,
                Kind::Row => {
                    self.at += 1;
                    if rows.last().is_some_and(|row| !row.is_empty()) {
                        rows.push(vec![]);
                    }
                }
                Kind::Column => self.at += 1,
                // `x + 1, & x > 0`.
                Kind::Comma
                    if matches!(
                        self.peek_ahead(1),
                        Some(Kind::Column | Kind::Row | Kind::End(_))
                    ) =>
                {
                    self.at += 1;
                }
                _ => {
                    let cell = self.with_bars(0, Self::relation)?;
                    rows.last_mut()?.push(cell);
                }
            }
        }
        self.at += 1;
        rows.retain(|row| !row.is_empty());
        if (environment == "cases" || lines_up(environment))
            && rows.iter().all(|row| row.len() == 1)
        {
            let mut lines: Vec<Expression> = rows.into_iter().flatten().collect();
            return Some(match lines.len() {
                1 => lines.remove(0),
                _ => Expression::List(lines, Joiner::And),
            });
        }
        let matrix = Expression::Matrix(rows);
        Some(match environment {
            "vmatrix" => Expression::Function(Function::Determinant, vec![matrix]),
            _ => matrix,
        })
    }
}
