//! Places for what costs much: so many in all, and fewer for each who asks (a source of requests, a
//! project), so that none keeps the others out.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Places, some of which are taken.
#[derive(Debug)]
pub(crate) struct Places<K> {
    in_all: usize,
    for_each: usize,
    taken: Mutex<Taken<K>>,
}

#[derive(Debug)]
struct Taken<K> {
    in_all: usize,
    /// By those who have any.
    by: HashMap<K, usize>,
}

impl<K> Places<K> {
    /// So many places, and so many of them for each.
    pub(crate) fn new(in_all: usize, for_each: usize) -> Self {
        Self {
            in_all,
            for_each,
            taken: Mutex::new(Taken {
                in_all: 0,
                by: HashMap::new(),
            }),
        }
    }

    fn taken(&self) -> MutexGuard<'_, Taken<K>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Clone + Eq + Hash> Places<K> {
    /// A place until it is dropped; none if all are taken, or all that are for `who`.
    pub(crate) fn take(&self, who: K) -> Option<Place<'_, K>> {
        let mut taken = self.taken();
        let own = taken.by.get(&who).map_or(0, |own| *own);
        if taken.in_all >= self.in_all || own >= self.for_each {
            return None;
        }
        taken.in_all += 1;
        taken.by.insert(who.clone(), own + 1);
        Some(Place { places: self, who })
    }
}

/// A place that is taken.
#[derive(Debug)]
pub(crate) struct Place<'a, K: Eq + Hash> {
    places: &'a Places<K>,
    who: K,
}

impl<K: Eq + Hash> Drop for Place<'_, K> {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        taken.in_all -= 1;
        match taken.by.get_mut(&self.who) {
            Some(own) if *own > 1 => *own -= 1,
            _ => {
                taken.by.remove(&self.who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::address::Source;

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
