//! The data plane's facade: takes NodeViews, converges the kernel, reports.
