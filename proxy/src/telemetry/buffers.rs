//! Counts of buffered bodies: what they hold now, which went to disk, and for which there was no room.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;

use super::connections::encode_reasons;

/// Whose body it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Request,
    Response,
}

const SIDES: [&str; 2] = ["request", "response"];

/// The first three are what the limits are held against; written for each block of a buffered body, by all workers.
#[derive(Default)]
pub struct Buffers {
    pub memory_bytes: AtomicU64,
    pub disk_bytes: AtomicU64,
    pub files: AtomicU64,
    spilled: [AtomicU64; SIDES.len()],
    full: [AtomicU64; SIDES.len()],
}

impl Buffers {
    /// A body outgrew its share of the memory.
    pub fn count_spilled(&self, side: Side) {
        self.spilled[side as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// There was no room for a body.
    pub fn count_full(&self, side: Side) {
        self.full[side as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help, value) in [
            ("buffer_memory_bytes", "Bytes of memory that buffered bodies take", &self.memory_bytes),
            ("buffer_disk_bytes", "Bytes of buffered bodies on disk", &self.disk_bytes),
            ("buffer_files", "Temporary files of buffered bodies", &self.files),
        ] {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            metric.encode_gauge(&value.load(Ordering::Relaxed))?;
        }
        let help = "Buffered bodies of which some went to disk";
        encode_reasons(encoder, "buffers_spilled", help, ("body", &SIDES), &self.spilled)?;
        let help = "Bodies for which there was no room: requests refused, answers streamed";
        encode_reasons(encoder, "buffers_full", help, ("body", &SIDES), &self.full)
    }
}
