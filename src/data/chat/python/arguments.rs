//! Arguments of functions, methods, and filters, bound to names as in Python.

use super::text::{as_integer, failed};
use minijinja::Error;
use minijinja::value::Value;

/// Returns the positional and named arguments of a call.
pub(in crate::data::chat) fn divided(arguments: &[Value]) -> (&[Value], Option<&Value>) {
    match arguments {
        [positional @ .., named] if named.is_kwargs() => (positional, Some(named)),
        positional => (positional, None),
    }
}

/// Binds the arguments of a call to parameters with these names. Missing ones are `None`.
pub(in crate::data::chat) fn bind<const N: usize>(
    function: &str,
    arguments: &[Value],
    names: [&str; N],
) -> Result<[Option<Value>; N], Error> {
    let (positional, named) = divided(arguments);
    if positional.len() > N {
        let count = positional.len();
        return Err(failed(format!("{function} takes at most {N} arguments, {count} were given")));
    }
    let mut bound = [const { None }; N];
    for (place, value) in bound.iter_mut().zip(positional) {
        *place = Some(value.clone());
    }
    let Some(named) = named else { return Ok(bound) };
    for name in named.try_iter()? {
        let text = name.as_str().unwrap_or_default();
        let Some(index) = names.iter().position(|known| *known == text) else {
            return Err(failed(format!("{function} has no argument `{text}`")));
        };
        if bound[index].is_some() {
            return Err(failed(format!("{function} got `{text}` twice")));
        }
        bound[index] = Some(named.get_item(&name)?);
    }
    Ok(bound)
}

/// Returns a text argument.
pub(in crate::data::chat) fn text<'a>(
    function: &str,
    value: Option<&'a Value>,
) -> Result<&'a str, Error> {
    let text = value.and_then(Value::as_str);
    text.ok_or_else(|| match value {
        None => failed(format!("{function} needs an argument")),
        Some(value) => failed(format!("{function} needs a text, not a {}", value.kind())),
    })
}

/// Returns an integer argument. `None` if it is missing or Python's `None`.
pub(in crate::data::chat) fn integer(
    function: &str,
    value: Option<&Value>,
) -> Result<Option<i64>, Error> {
    let Some(value) = value.filter(|value| !value.is_none()) else { return Ok(None) };
    let number = as_integer(value);
    let number = number.ok_or_else(|| {
        failed(format!("{function} needs a whole number, not a {}", value.kind()))
    })?;
    // Python clamps indices beyond the text to its end.
    let (least, most) = (i128::from(i64::MIN), i128::from(i64::MAX));
    Ok(i64::try_from(number.clamp(least, most)).ok())
}
