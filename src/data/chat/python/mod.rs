//! What chat templates expect of Python's values: methods of texts, `%`, `json.dumps`.

pub(super) mod arguments;
pub(super) mod json;
pub(super) mod methods;
pub(super) mod percent;
pub(super) mod printf;
pub(super) mod text;
