//! One JSON line per request, off the hot path.
