//! Softmax attention written out on the host in f64.

/// One attention call, `softmax(Q K^T / sqrt(head_dim)) V`, each query over the cells it may look at.
pub(super) struct Reference<'a> {
    /// `[batch, query_head, query, head_dim]`.
    pub(super) query: &'a [f64],
    /// `[batch, kv_head, cell, head_dim]`.
    pub(super) keys: &'a [f64],
    /// Like `keys`.
    pub(super) values: &'a [f64],
    /// Query heads of a key-value head.
    pub(super) group: usize,
    pub(super) queries: usize,
    pub(super) cells: usize,
    pub(super) dim: usize,
}

impl Reference<'_> {
    /// Outputs `[batch, query_head, query, head_dim]`, and the mass of each cell `[batch, query_head, cell]` with the
    /// queries weighted by `weights`. `sees(row and key-value head, query, cell)` says who looks where.
    pub(super) fn run(&self, weights: &[f32], sees: impl Fn(usize, usize, usize) -> bool) -> (Vec<f64>, Vec<f64>) {
        let mut output = Vec::with_capacity(self.query.len());
        let mut mass = vec![0.0; self.query.len() / self.dim / self.queries * self.cells];
        for (line, query) in self.query.chunks(self.dim).enumerate() {
            let (head, row) = (line / self.queries, line % self.queries);
            let place = head / self.group;
            let part = |cell: usize| (place * self.cells + cell) * self.dim..(place * self.cells + cell + 1) * self.dim;
            let scores: Vec<f64> = (0..self.cells)
                .map(|at| {
                    let key = &self.keys[part(at)];
                    let dot: f64 = query.iter().zip(key).map(|(q, k)| q * k).sum();
                    if sees(place, row, at) { dot / (self.dim as f64).sqrt() } else { f64::NEG_INFINITY }
                })
                .collect();
            let best = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().map(|score| (score - best).exp()).sum();
            let mut mixed = vec![0.0; self.dim];
            for (at, score) in scores.iter().enumerate() {
                let share = (score - best).exp() / total;
                mass[head * self.cells + at] += share * f64::from(weights[row]);
                let value = &self.values[part(at)];
                mixed.iter_mut().zip(value).for_each(|(sum, value)| *sum += share * value);
            }
            output.extend(mixed);
        }
        (output, mass)
    }
}
