//! Stop strings in a text that comes in pieces.

/// Text so far, of which a tail that may become a stop string is held back.
pub(super) struct StopText<'a> {
    stops: &'a [String],
    pub(super) text: String,
    sent: usize,
}

impl<'a> StopText<'a> {
    pub(super) fn new(stops: &'a [String]) -> Self {
        Self { stops, text: String::new(), sent: 0 }
    }

    /// Adds a piece; true if a stop string was completed, which is cut off with everything behind it.
    pub(super) fn push(&mut self, piece: &str, stream: &mut impl FnMut(&str)) -> bool {
        self.text.push_str(piece);
        let stops = self.stops.iter().filter(|stop| !stop.is_empty());
        let found = stops.clone().filter_map(|stop| self.text[self.sent..].find(stop.as_str())).min();
        if let Some(at) = found {
            self.text.truncate(self.sent + at);
            self.finish(stream);
            return true;
        }
        let fresh = &self.text[self.sent..];
        let held =
            |stop: &String| (1..stop.len()).rev().find(|&n| stop.is_char_boundary(n) && fresh.ends_with(&stop[..n]));
        let hold = stops.filter_map(held).max().unwrap_or(0);
        let end = self.text.len() - hold;
        if end > self.sent {
            stream(&self.text[self.sent..end]);
            self.sent = end;
        }
        false
    }

    pub(super) fn finish(&mut self, stream: &mut impl FnMut(&str)) {
        if self.sent < self.text.len() {
            stream(&self.text[self.sent..]);
            self.sent = self.text.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_strings_are_cut_and_never_streamed_even_across_pieces() {
        let stops = vec!["\nUser:".to_string(), "END".to_string()];
        for (pieces, expected, stopped) in [
            (&["Hello", "\nUs", "er: more"][..], "Hello", true),
            (&["a\nUs", "ual E", "ND"], "a\nUsual ", true),
            (&["no stop", "\nUse"], "no stop\nUse", false),
        ] {
            let mut streamed = String::new();
            let mut text = StopText::new(&stops);
            let hit = pieces.iter().any(|piece| text.push(piece, &mut |part| streamed.push_str(part)));
            text.finish(&mut |part| streamed.push_str(part));
            assert_eq!((text.text.as_str(), streamed.as_str(), hit), (expected, expected, stopped));
        }
    }
}
