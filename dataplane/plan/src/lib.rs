//! Pure planning: NodeView to KernelState to Delta to ordered Plan.
