//! More asked for than can be done, or than a limit allows, by one greedy caller and nine polite ones.

use std::path::Path;

use kmsgate::domain::cost::Work;
use kmsgate::domain::key::KeySpec;

use crate::Outcome;
use crate::asymmetric;
use crate::load::crowd::{Answers, Crowd};
use crate::load::{self, Face, Prepared, Window};
use crate::server::{Launch, Server, Site};

/// How many callers there are. The last one is greedy.
const CALLERS: usize = 10;

/// How much more is offered than can be done, or than the limit allows.
const OVERLOAD: f64 = 3.0;

/// How long RSA is measured beside what the other parts take: a queue must have time to fill.
const LONGER: u32 = 5;

/// The bytes of the plaintext under AES.
const PLAINTEXT: u16 = 32;

/// Calls in flight that find the rate of AES, and keep a server busy with refusals.
const BUSY: u16 = 128;

/// Everything that was found.
pub(crate) struct Found {
    pub(crate) rsa: Vec<Rsa>,
    pub(crate) aes: Vec<Aes>,
    pub(crate) costs: Vec<Cost>,
}

/// RSA_4096 decryption on one server.
pub(crate) struct Rsa {
    /// What bounds the callers.
    pub(crate) limit: String,
    /// The rate without overload, and what came of the overload, as often as there are pairs.
    pub(crate) turns: Vec<(f64, Answers)>,
}

/// EncryptData under AES-256 on one server.
pub(crate) struct Aes {
    pub(crate) limit: String,
    /// What the limit allows all callers together, per second.
    pub(crate) allowed: f64,
    /// All callers within their limits, and one of them far over it.
    pub(crate) turns: Vec<(Answers, Answers)>,
}

/// What an answer costs.
pub(crate) struct Cost {
    pub(crate) answer: &'static str,
    /// As often as there are pairs.
    pub(crate) turns: Vec<Answers>,
}

/// Measures `turns` times.
pub(crate) async fn measure(
    binary: &Path,
    launch: &Launch<'_>,
    turns: u16,
    window: Window,
) -> Outcome<Found> {
    let mut site = Site::new(CALLERS)?;
    let server = Server::serve(binary, &site, "", launch)?;
    let (aes, rsa) = asymmetric::keys(&server).await?;
    server.stop()?;
    site.key_id = aes;
    Ok(Found {
        rsa: decryptions(binary, launch, &site, &rsa, turns, window).await?,
        aes: encryptions(binary, launch, &site, turns, window).await?,
        costs: costs(binary, launch, &site, turns, window).await?,
    })
}

/// Offers three times as many RSA_4096 decryptions as can be done: each polite caller a tenth of those that can, and the
/// greedy one the rest.
async fn decryptions(
    binary: &Path,
    launch: &Launch<'_>,
    site: &Site,
    key_id: &str,
    turns: u16,
    window: Window,
) -> Outcome<Vec<Rsa>> {
    let window = Window {
        warm_up: window.warm_up * LONGER,
        length: window.length * LONGER,
    };
    let (free_site, bounded_site) = (site.copy()?, site.copy()?);
    let free = Server::serve(binary, &free_site, "", launch)?;
    let call = asymmetric::decryptions(&free, key_id).await?;
    let free_crowd = Crowd::new(&call, site.callers())?;
    let peak = free_crowd.closed(4, window).await?.goodput();

    // A third more than a tenth each, so that nothing is left undone for want of a right to it when calls come unevenly.
    let micros = f64::from(KeySpec::Rsa4096.micros(Work::Decrypt));
    let cores = 4.0 / 3.0 * peak / CALLERS as f64 * micros / 1e6;
    let limit = format!("per_caller = {{ cores = {cores:.6}, burst = \"20ms\" }}");
    let bounded = Server::serve(binary, &bounded_site, &limit, launch)?;
    let call = asymmetric::decryptions(&bounded, key_id).await?;
    let bounded_crowd = Crowd::new(&call, site.callers())?;

    let mut rows = [("none", &free_crowd), (&*limit, &bounded_crowd)].map(|(limit, crowd)| {
        let limit = limit.to_owned();
        (
            Rsa {
                limit,
                turns: Vec::new(),
            },
            crowd,
        )
    });
    for _ in 0..turns {
        for (row, crowd) in &mut rows {
            let peak = free_crowd.closed(4, window).await?.goodput();
            let mut rates = [peak / CALLERS as f64; CALLERS];
            rates[CALLERS - 1] += (OVERLOAD - 1.0) * peak;
            let answers = crowd.open(&rates, window).await?;
            eprintln!(
                "RSA_4096, limit {}: {:.0}/s of {peak:.0}/s, Jain {:.3}",
                row.limit,
                answers.goodput(),
                answers.jain()
            );
            row.turns.push((peak, answers));
        }
    }
    Ok(rows.into_iter().map(|(row, _)| row).collect())
}

/// Offers three times as many encryptions as a limit allows: each polite caller nine tenths of its own, and the greedy
/// one the rest; beside that, every caller nine tenths.
async fn encryptions(
    binary: &Path,
    launch: &Launch<'_>,
    site: &Site,
    turns: u16,
    window: Window,
) -> Outcome<Vec<Aes>> {
    let free_site = site.copy()?;
    let free = Server::serve(binary, &free_site, "", launch)?;
    let call = Prepared::new(&free, Face::Grpc, PLAINTEXT).await?;
    let peak = load::closed(&call, BUSY, window).await?.rate;
    free.stop()?;
    // A call that comes alone costs both sides several times one of many, so this is less than half of what could be
    // served, and of what the load generator can ask for in time.
    let each = (peak / 6.0 / OVERLOAD / CALLERS as f64).round();
    let allowed = each * CALLERS as f64;
    let micros = f64::from(KeySpec::Aes256.micros(Work::Encrypt));

    let mut rows = Vec::new();
    for limit in [
        format!("per_caller = {{ requests_per_second = {each} }}"),
        format!(
            "per_caller = {{ cores = {:.6}, burst = \"1ms\" }}",
            each * micros / 1e6
        ),
    ] {
        let own_site = site.copy()?;
        let server = Server::serve(binary, &own_site, &limit, launch)?;
        let call = Prepared::new(&server, Face::Grpc, PLAINTEXT).await?;
        let crowd = Crowd::new(&call, site.callers())?;
        let polite = [each * 0.9; CALLERS];
        let mut greedy = polite;
        greedy[CALLERS - 1] = OVERLOAD * allowed - polite[1..].iter().sum::<f64>();
        let mut row = Aes {
            limit,
            allowed,
            turns: Vec::new(),
        };
        for _ in 0..turns {
            let within = crowd.open(&polite, window).await?;
            let over = crowd.open(&greedy, window).await?;
            eprintln!(
                "AES_256, {}: {:.0}/s, beside it {:.0}/s and {:.0}/s refused",
                row.limit,
                within.goodput(),
                over.goodput(),
                over.refused(),
            );
            row.turns.push((within, over));
        }
        rows.push(row);
        server.stop()?;
    }
    Ok(rows)
}

/// Has one caller keep a server busy that serves everything, and such that refuse nearly everything.
async fn costs(
    binary: &Path,
    launch: &Launch<'_>,
    site: &Site,
    turns: u16,
    window: Window,
) -> Outcome<Vec<Cost>> {
    let mut rows = Vec::new();
    for (answer, limits) in [
        ("served, without limits", ""),
        (
            "served, within all limits",
            "per_caller = { cores = 4000, requests_per_second = 4294967295 }\nper_key = { cores = 4000 }",
        ),
        (
            "refused by requests_per_second",
            "per_caller = { requests_per_second = 1 }",
        ),
        (
            "refused by cores",
            "per_caller = { cores = 0.000001, burst = \"0ms\" }",
        ),
    ] {
        let own_site = site.copy()?;
        let server = Server::serve(binary, &own_site, limits, launch)?;
        let call = Prepared::new(&server, Face::Grpc, PLAINTEXT).await?;
        let crowd = Crowd::new(&call, &site.callers()[..1])?;
        rows.push((
            server,
            own_site,
            crowd,
            Cost {
                answer,
                turns: Vec::new(),
            },
        ));
    }
    for _ in 0..turns {
        for (_, _, crowd, row) in &mut rows {
            let answers = crowd.closed(BUSY.into(), window).await?;
            eprintln!("{}: {:?} an answer", row.answer, answers.server_cpu);
            row.turns.push(answers);
        }
    }
    Ok(rows.into_iter().map(|(_, _, _, row)| row).collect())
}
