//! Sums and products of matrices, computed cell by cell so that matrices can be compared by their cells.
//! Operands that do not fit together are left unchanged.

use super::expression::{Expression, Function};
use super::number::small_integer;

/// Maximum number of rows or columns of a matrix in a product.
const MAX_SIDE: usize = 12;

/// Computes the sums and products of matrices in an expression.
pub fn folded(expression: Expression) -> Expression {
    if !expression.any(&|part| matches!(part, Expression::Matrix(_))) {
        return expression;
    }
    match expression {
        Expression::Sum(terms) => {
            let terms: Vec<Expression> = terms.into_iter().map(folded).collect();
            sum(&terms).unwrap_or(Expression::Sum(terms))
        }
        Expression::Product(factors) => {
            let factors: Vec<Expression> = factors.into_iter().map(folded).collect();
            product(&factors).unwrap_or(Expression::Product(factors))
        }
        Expression::Negative(inner) => {
            let inner = folded(*inner);
            match &inner {
                Expression::Matrix(rows) => {
                    each(rows, |cell| Expression::Negative(Box::new(cell.clone())))
                }
                _ => Expression::Negative(Box::new(inner)),
            }
        }
        Expression::Power(base, exponent) => match *exponent {
            // A transposed row.
            Expression::Variable(name) if name == "T" => {
                let base = folded(*base);
                match &base {
                    Expression::Matrix(rows) => transposed(rows).unwrap_or(base),
                    _ => base,
                }
            }
            exponent => {
                let base = folded(*base);
                let power = match &base {
                    Expression::Matrix(rows) => power(rows, &exponent),
                    _ => None,
                };
                power.unwrap_or_else(|| Expression::Power(Box::new(base), Box::new(exponent)))
            }
        },
        Expression::Function(Function::Determinant, arguments) => match arguments.as_slice() {
            [Expression::Matrix(rows)] => {
                determinant(rows).unwrap_or(Expression::Function(Function::Determinant, arguments))
            }
            _ => Expression::Function(Function::Determinant, arguments),
        },
        Expression::Chain(sides, relations) => {
            Expression::Chain(sides.into_iter().map(folded).collect(), relations)
        }
        Expression::List(items, joiner) => {
            Expression::List(items.into_iter().map(folded).collect(), joiner)
        }
        Expression::Set(items) => Expression::Set(items.into_iter().map(folded).collect()),
        other => other,
    }
}

fn each(rows: &[Vec<Expression>], cell: impl Fn(&Expression) -> Expression) -> Expression {
    Expression::Matrix(rows.iter().map(|row| row.iter().map(&cell).collect()).collect())
}

fn rows_of(expression: &Expression) -> Option<&[Vec<Expression>]> {
    match expression {
        Expression::Matrix(rows) => Some(rows),
        _ => None,
    }
}

fn sum(terms: &[Expression]) -> Option<Expression> {
    let matrices = terms.iter().map(rows_of).collect::<Option<Vec<_>>>()?;
    let first = *matrices.first()?;
    let widths = |rows: &[Vec<Expression>]| rows.iter().map(Vec::len).collect::<Vec<_>>();
    if matrices.iter().any(|rows| widths(rows) != widths(first)) {
        return None;
    }
    let cell = |row: usize, column: usize| {
        Expression::Sum(matrices.iter().map(|rows| rows[row][column].clone()).collect())
    };
    let rows =
        (0..first.len()).map(|row| (0..first[row].len()).map(|column| cell(row, column)).collect());
    Some(Expression::Matrix(rows.collect()))
}

fn product(factors: &[Expression]) -> Option<Expression> {
    let scalars: Vec<Expression> =
        factors.iter().filter(|factor| rows_of(factor).is_none()).cloned().collect();
    if !scalars.iter().all(Expression::is_scalar) {
        return None;
    }
    let mut matrices = factors.iter().filter_map(rows_of);
    let mut result = matrices.next()?.to_vec();
    // Cells grow with every product, so the number of products is limited.
    for (at, other) in matrices.enumerate() {
        let side = other.len();
        let width = other.first()?.len();
        let fits = result.iter().all(|row| row.len() == side)
            && other.iter().all(|row| row.len() == width);
        if at > 2 || !fits || side.max(width).max(result.len()) > MAX_SIDE {
            return None;
        }
        let cell = |row: &[Expression], column: usize| {
            let products = row
                .iter()
                .zip(other)
                .map(|(a, row)| Expression::Product(vec![a.clone(), row[column].clone()]));
            Expression::Sum(products.collect())
        };
        result =
            result.iter().map(|row| (0..width).map(|column| cell(row, column)).collect()).collect();
    }
    if scalars.is_empty() {
        return Some(Expression::Matrix(result));
    }
    Some(each(&result, |cell| {
        let mut factors = scalars.clone();
        factors.push(cell.clone());
        Expression::Product(factors)
    }))
}

fn transposed(rows: &[Vec<Expression>]) -> Option<Expression> {
    let width = rows.first()?.len();
    rows.iter().all(|row| row.len() == width).then(|| {
        Expression::Matrix(
            (0..width).map(|column| rows.iter().map(|row| row[column].clone()).collect()).collect(),
        )
    })
}

/// Returns the square or cube of a matrix, or the inverse of one with two rows.
fn power(rows: &[Vec<Expression>], exponent: &Expression) -> Option<Expression> {
    let matrix = Expression::Matrix(rows.to_vec());
    match (small_integer(exponent)?, rows) {
        (2, _) => product(&[matrix.clone(), matrix]),
        (3, _) => product(&[matrix.clone(), matrix.clone(), matrix]),
        (-1, [first, second]) => {
            let determinant = determinant(rows)?;
            let minus = |cell: &Expression| Expression::Negative(Box::new(cell.clone()));
            let adjugate = [
                vec![second[1].clone(), minus(&first[1])],
                vec![minus(&second[0]), first[0].clone()],
            ];
            Some(each(&adjugate, |cell| {
                Expression::Quotient(Box::new(cell.clone()), Box::new(determinant.clone()))
            }))
        }
        _ => None,
    }
}

/// Returns the determinant of a matrix of two or three rows.
fn determinant(rows: &[Vec<Expression>]) -> Option<Expression> {
    let side = rows.len();
    if !rows.iter().all(|row| row.len() == side && row.iter().all(Expression::is_scalar)) {
        return None;
    }
    let times = |cells: &[(usize, usize)]| {
        Expression::Product(cells.iter().map(|(row, column)| rows[*row][*column].clone()).collect())
    };
    let minus = |cells: &[(usize, usize)]| Expression::Negative(Box::new(times(cells)));
    match side {
        2 => Some(Expression::Sum(vec![times(&[(0, 0), (1, 1)]), minus(&[(0, 1), (1, 0)])])),
        3 => Some(Expression::Sum(
            (0..3)
                .flat_map(|at| {
                    let (next, last) = ((at + 1) % 3, (at + 2) % 3);
                    [
                        times(&[(0, at), (1, next), (2, last)]),
                        minus(&[(0, at), (1, last), (2, next)]),
                    ]
                })
                .collect(),
        )),
        _ => None,
    }
}
