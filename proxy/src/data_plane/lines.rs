//! Who waits in which line, oldest first, with every step in constant time.
//!
//! A connection changes lines with every request, so a line is a chain through the slots that the members
//! have anyway: joining and leaving allocate nothing, and nobody is searched for.

/// A line's members are in the order in which they joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// Let in, and nothing asked for yet.
    New,
    /// Between two requests.
    Idle,
    Handshakes,
}

const LINES: usize = 3;
const NOBODY: u32 = u32::MAX;

/// A member's place, free again when it is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot(u32);

struct Member<T> {
    value: Option<T>,
    line: Option<Line>,
    since_us: u64,
    before: u32,
    behind: u32,
}

#[derive(Clone, Copy)]
struct Ends {
    first: u32,
    last: u32,
    len: usize,
}

pub struct Lines<T> {
    members: Vec<Member<T>>,
    free: Vec<u32>,
    ends: [Ends; LINES],
}

impl<T> Default for Lines<T> {
    fn default() -> Self {
        let ends = [Ends { first: NOBODY, last: NOBODY, len: 0 }; LINES];
        Self { members: Vec::new(), free: Vec::new(), ends }
    }
}

impl<T> Lines<T> {
    pub fn add(&mut self, value: T) -> Slot {
        let member = Member { value: Some(value), line: None, since_us: 0, before: NOBODY, behind: NOBODY };
        match self.free.pop() {
            Some(slot) => {
                self.members[slot as usize] = member;
                Slot(slot)
            }
            None => {
                let slot = u32::try_from(self.members.len()).expect("there are fewer descriptors");
                self.members.push(member);
                Slot(slot)
            }
        }
    }

    pub fn remove(&mut self, slot: Slot) {
        self.leave(slot);
        if self.members[slot.0 as usize].value.take().is_some() {
            self.free.push(slot.0);
        }
    }

    pub fn get_mut(&mut self, slot: Slot) -> &mut T {
        self.members[slot.0 as usize].value.as_mut().expect("a slot is used until it is removed")
    }

    /// Joins the end of a line, from any other.
    pub fn join(&mut self, slot: Slot, line: Line, now_us: u64) {
        self.leave(slot);
        let ends = &mut self.ends[line as usize];
        let last = std::mem::replace(&mut ends.last, slot.0);
        ends.len += 1;
        if last == NOBODY {
            ends.first = slot.0;
        } else {
            self.members[last as usize].behind = slot.0;
        }
        let member = &mut self.members[slot.0 as usize];
        (member.line, member.since_us, member.before, member.behind) = (Some(line), now_us, last, NOBODY);
    }

    pub fn leave(&mut self, slot: Slot) {
        let Member { line, before, behind, .. } = self.members[slot.0 as usize];
        let Some(line) = line else { return };
        self.members[slot.0 as usize].line = None;
        let ends = &mut self.ends[line as usize];
        ends.len -= 1;
        if before == NOBODY {
            ends.first = behind;
        } else {
            self.members[before as usize].behind = behind;
        }
        let ends = &mut self.ends[line as usize];
        if behind == NOBODY {
            ends.last = before;
        } else {
            self.members[behind as usize].before = before;
        }
    }

    /// Who has been in a line for the longest time, and since when.
    pub fn first(&self, line: Line) -> Option<(Slot, u64)> {
        let first = self.ends[line as usize].first;
        (first != NOBODY).then(|| (Slot(first), self.members[first as usize].since_us))
    }

    pub fn len(&self, line: Line) -> usize {
        self.ends[line as usize].len
    }

    /// Everybody, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (Slot, &T)> {
        let slots = (0u32..).map(Slot);
        slots.zip(&self.members).filter_map(|(slot, member)| Some((slot, member.value.as_ref()?)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_oldest_is_first_and_whoever_comes_back_is_last() {
        let mut lines = Lines::default();
        let [a, b, c] = ["a", "b", "c"].map(|name| lines.add(name));
        for (slot, at) in [(a, 1), (b, 2), (c, 3)] {
            lines.join(slot, Line::Idle, at);
        }
        lines.leave(a);
        assert_eq!((lines.first(Line::Idle), lines.len(Line::Idle)), (Some((b, 2)), 2));
        lines.join(a, Line::Idle, 4);
        lines.remove(b);
        assert_eq!(lines.first(Line::Idle), Some((c, 3)));
        lines.join(c, Line::Handshakes, 5);
        assert_eq!((lines.first(Line::Idle), lines.first(Line::Handshakes)), (Some((a, 4)), Some((c, 5))));
        assert_eq!(lines.iter().map(|(_, name)| *name).collect::<Vec<_>>(), ["a", "c"]);
    }

    proptest! {
        /// The chains do what two plain vectors would.
        #[test]
        fn chains_agree_with_vectors(steps in prop::collection::vec((0usize..8, 0u8..5), 0..200)) {
            let mut lines = Lines::default();
            let mut slots: Vec<Option<Slot>> = vec![None; 8];
            let mut plain: [Vec<usize>; LINES] = Default::default();
            for (at, (who, step)) in steps.into_iter().enumerate() {
                let slot = *slots[who].get_or_insert_with(|| lines.add(who));
                plain.iter_mut().for_each(|line| line.retain(|member| *member != who));
                match step {
                    0..3 => {
                        let line = [Line::New, Line::Idle, Line::Handshakes][usize::from(step)];
                        plain[line as usize].push(who);
                        lines.join(slot, line, at as u64);
                    }
                    3 => lines.leave(slot),
                    _ => {
                        lines.remove(slot);
                        slots[who] = None;
                    }
                }
                for line in [Line::New, Line::Idle, Line::Handshakes] {
                    let first = lines.first(line).map(|(slot, _)| *lines.get_mut(slot));
                    prop_assert_eq!(first, plain[line as usize].first().copied());
                    prop_assert_eq!(lines.len(line), plain[line as usize].len());
                }
                prop_assert_eq!(lines.iter().count(), slots.iter().flatten().count());
            }
        }
    }
}
