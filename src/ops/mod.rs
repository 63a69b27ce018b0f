//! Differentiable operations that the model needs and Burn lacks in a fast form.
