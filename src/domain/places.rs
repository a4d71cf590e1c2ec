//! Places for what strangers ask for: so many in all, and fewer for each source of requests, so that
//! none keeps the others out.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::domain::address::Source;

/// Places, some of which are taken.
#[derive(Debug)]
pub(crate) struct Places {
    in_all: usize,
    for_each: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    in_all: usize,
    /// By those who have any.
    by: HashMap<Source, usize>,
}

impl Places {
    /// So many places, and so many of them for each source.
    pub(crate) fn new(in_all: usize, for_each: usize) -> Self {
        Self {
            in_all,
            for_each,
            taken: Mutex::default(),
        }
    }

    /// A place until it is dropped; none if all are taken, or all that are for this source.
    pub(crate) fn take(&self, source: Source) -> Option<Place<'_>> {
        let mut taken = self.taken();
        let own = taken.by.get(&source).map_or(0, |own| *own);
        if taken.in_all >= self.in_all || own >= self.for_each {
            return None;
        }
        taken.in_all += 1;
        taken.by.insert(source, own + 1);
        Some(Place {
            places: self,
            source,
        })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place that is taken.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    places: &'a Places,
    source: Source,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        taken.in_all -= 1;
        match taken.by.get_mut(&self.source) {
            Some(own) if *own > 1 => *own -= 1,
            _ => {
                taken.by.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_has_all_places_and_all_have_no_more_than_there_are() {
        let places = Places::new(5, 2);
        let [one, two, three] = [1, 2, 3].map(Source::User);
        let first = places.take(one).unwrap();
        let _second = places.take(one).unwrap();
        assert!(places.take(one).is_none());
        let _others = [two, two, three].map(|source| places.take(source).unwrap());
        assert!(places.take(three).is_none(), "there are five");
        drop(first);
        let _again = places.take(one).unwrap();
    }

    #[test]
    fn who_has_no_place_takes_no_memory() {
        let places = Places::new(5, 2);
        for user in 0..1000 {
            let source = Source::User(user);
            let _both = [places.take(source).unwrap(), places.take(source).unwrap()];
        }
        assert!(places.taken().by.is_empty());
        assert_eq!(places.taken().in_all, 0);
    }
}
