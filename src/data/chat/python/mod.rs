//! Behavior of Python values that chat templates rely on: methods of text, `%`, and `json.dumps`.

pub(super) mod arguments;
pub(super) mod json;
pub(super) mod methods;
pub(super) mod percent;
pub(super) mod printf;
pub(super) mod text;
