//! Dates of the Gregorian calendar in UTC, as credentials write them.

use crate::domain::time::Timestamp;

/// A date and a time of day, not checked yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Utc {
    pub(super) year: u16,
    pub(super) month: u8,
    pub(super) day: u8,
    pub(super) hour: u8,
    pub(super) minute: u8,
    pub(super) second: u8,
}

impl Utc {
    /// The time, if the calendar and the clock have it. A leap second is not a time: the wall clock
    /// never shows one.
    pub(super) fn timestamp(self) -> Option<Timestamp> {
        const BEFORE: [i64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
        let leap = self.year.is_multiple_of(4)
            && (!self.year.is_multiple_of(100) || self.year.is_multiple_of(400));
        let length = match self.month {
            2 if leap => 29,
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        let in_day = self.hour < 24 && self.minute < 60 && self.second < 60;
        if self.year < 1970 || !(1..=length).contains(&self.day) || !in_day {
            return None;
        }
        let before_month = BEFORE.get(usize::from(self.month).checked_sub(1)?)?;
        let leap_day = i64::from(leap && self.month > 2);
        let years = i64::from(self.year);
        let days = (years - 1970) * 365 + leap_days_before(years) - leap_days_before(1970)
            + before_month
            + leap_day
            + i64::from(self.day)
            - 1;
        let [hour, minute, second] = [self.hour, self.minute, self.second].map(i64::from);
        Some(Timestamp(
            (((days * 24 + hour) * 60 + minute) * 60 + second) * 1000,
        ))
    }
}

/// How many leap days there were before `year`.
const fn leap_days_before(year: i64) -> i64 {
    let past = year - 1;
    past / 4 - past / 100 + past / 400
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_as_many_milliseconds_as_date_1_says() {
        // `date -u -d DATE +%s`, GNU coreutils.
        let known = [
            ((1970, 1, 1, 0, 0, 0), 0),
            ((1999, 12, 31, 23, 59, 59), 946_684_799),
            ((2000, 2, 29, 12, 0, 0), 951_825_600),
            ((2000, 3, 1, 0, 0, 0), 951_868_800),
            ((2019, 11, 15, 3, 36, 55), 1_573_789_015),
            ((2026, 11, 23, 6, 53, 28), 1_795_416_808),
            ((2100, 3, 1, 0, 0, 0), 4_107_542_400),
            ((9999, 12, 31, 23, 59, 59), 253_402_300_799),
        ];
        for (date, seconds) in known {
            assert_eq!(utc(date), Some(Timestamp(seconds * 1000)), "{date:?}");
        }
    }

    #[test]
    fn what_no_calendar_has_is_no_date() {
        for date in [
            (1969, 12, 31, 23, 59, 59),
            (2026, 0, 1, 0, 0, 0),
            (2026, 13, 1, 0, 0, 0),
            (2026, 1, 0, 0, 0, 0),
            (2026, 4, 31, 0, 0, 0),
            (2026, 2, 29, 0, 0, 0),
            (2100, 2, 29, 0, 0, 0),
            (2026, 1, 1, 24, 0, 0),
            (2026, 1, 1, 0, 60, 0),
            (2026, 1, 1, 0, 0, 60),
        ] {
            assert_eq!(utc(date), None, "{date:?}");
        }
    }

    fn utc(
        (year, month, day, hour, minute, second): (u16, u8, u8, u8, u8, u8),
    ) -> Option<Timestamp> {
        let utc = Utc {
            year,
            month,
            day,
            hour,
            minute,
            second,
        };
        utc.timestamp()
    }
}
