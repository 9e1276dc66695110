//! Seats and lines: rules one by one, random histories against a simple model, and threads that race.

use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;

use proptest::prelude::*;

use super::*;

fn endpoint(port: u16) -> Endpoint {
    Endpoint::Tcp(([127, 0, 0, 1], port).into())
}

/// A line in front of `targets` targets, each with `max` seats.
fn line(max: u32, targets: u16) -> (Arc<Admission>, Queue, Vec<Arc<Seats>>) {
    let admission = Admission::new();
    admission.limit(NonZeroU32::new(max), Duration::ZERO);
    let queue = Queue::new(Arc::clone(&admission));
    let seats: Vec<_> = (1..=targets).map(|port| admission.seats(&endpoint(port))).collect();
    admission.open(&queue, seats.clone());
    (admission, queue, seats)
}

fn join(queue: &Queue) -> Waiting {
    queue.join(&Turn::New, 1000).unwrap_or_else(|why| panic!("{why:?}"))
}

/// The seat, if it was granted already.
fn granted(waiting: &mut Waiting) -> Option<Seat> {
    waiting.granted.try_recv().ok()
}

#[test]
fn seats_are_limited_and_nobody_overtakes_the_line() {
    let (_, queue, seats) = line(2, 1);
    let (first, second) = (queue.sit(&seats[0]).unwrap(), queue.sit(&seats[0]).unwrap());
    assert!(queue.sit(&seats[0]).is_none());
    let mut waiting = join(&queue);
    assert!(granted(&mut waiting).is_none());
    drop(first);
    let handed_on = granted(&mut waiting).expect("the freed seat goes to the one in line");
    let behind = join(&queue);
    drop(second);
    drop((handed_on, behind, waiting));
    assert_eq!((seats[0].taken(), queue.waiting()), (0, 0));

    let holding = [queue.sit(&seats[0]).unwrap(), queue.sit(&seats[0]).unwrap()];
    let mut waiting = join(&queue);
    // As if the seat were freed and the waiter not yet told: a newcomer may not take it.
    seats[0].taken.fetch_sub(1, Ordering::SeqCst);
    assert!(queue.sit(&seats[0]).is_none());
    seats[0].taken.fetch_add(1, Ordering::SeqCst);
    drop(holding);
    assert!(granted(&mut waiting).is_some());
}

#[test]
fn whichever_target_is_free_first_serves_the_first_in_line() {
    let (_, queue, seats) = line(1, 2);
    let holding = [queue.sit(&seats[0]).unwrap(), queue.sit(&seats[1]).unwrap()];
    let (mut first, mut second) = (join(&queue), join(&queue));
    let [one, other] = holding;
    drop(other);
    assert!(granted(&mut first).unwrap().is_of(&seats[1]));
    // That seat was dropped at once, so it went on.
    assert!(granted(&mut second).unwrap().is_of(&seats[1]));
    drop(one);
}

#[test]
fn who_leaves_gives_up_the_place_and_what_was_granted_meanwhile() {
    let (_, queue, seats) = line(1, 1);
    let holding = queue.sit(&seats[0]).unwrap();
    let (first, second, mut third) = (join(&queue), join(&queue), join(&queue));
    drop(second);
    assert_eq!(queue.waiting(), 2);
    drop(holding);
    assert_eq!(queue.waiting(), 1, "the first was granted");
    drop(first);
    assert!(granted(&mut third).is_some());
    assert_eq!((queue.waiting(), seats[0].taken()), (0, 0));
}

#[test]
fn a_full_line_turns_newcomers_away_only() {
    let (_, queue, seats) = line(1, 1);
    let holding = queue.sit(&seats[0]).unwrap();
    let first = queue.join(&Turn::New, 1).ok().unwrap();
    assert_eq!(queue.join(&Turn::New, 1).err(), Some(CannotJoin::Full));
    assert_eq!(queue.join(&Turn::New, 0).err(), Some(CannotJoin::Full));
    let mut kept = queue.join(&Turn::Kept(Ticket { order: 0, id: 0 }), 1).ok().unwrap();
    drop(holding);
    assert!(granted(&mut kept).is_some(), "an older ticket comes first");
    drop(first);
}

#[test]
fn who_was_refused_comes_first_and_is_not_sent_there_again() {
    let (_, queue, seats) = line(1, 2);
    let live = queue.sit(&seats[1]).unwrap();
    let dead = queue.sit(&seats[0]).unwrap();
    let mut behind = join(&queue);
    let mut refused = queue.join(&Turn::Refused(&seats[..1]), 0).ok().unwrap();
    drop(dead);
    assert!(granted(&mut refused).is_none());
    let next = granted(&mut behind).expect("the next in line may try it");
    drop(live);
    assert!(granted(&mut refused).unwrap().is_of(&seats[1]));
    drop(next);
}

#[test]
fn an_ended_line_sends_all_on_in_their_order() {
    let (admission, old, seats) = line(1, 1);
    let holding = old.sit(&seats[0]).unwrap();
    let mut waiting: VecDeque<Waiting> = (0..5).map(|_| join(&old)).collect();
    let next = Queue::new(Arc::clone(&admission));
    // The same address: its seats are the same too.
    admission.open(&next, vec![admission.seats(&endpoint(1))]);
    let newcomer = join(&next);
    admission.keep_only(&[&next]);
    assert_eq!((old.waiting(), old.join(&Turn::New, 9).err()), (0, Some(CannotJoin::Ended)));
    for one in &mut waiting {
        assert!(one.granted.try_recv().is_err());
    }
    // Woken in any order, they stand in the old one.
    waiting.rotate_left(3);
    let mut moved: Vec<Waiting> =
        waiting.iter().map(|one| next.join(&Turn::Kept(one.ticket()), 0).ok().unwrap()).collect();
    moved.sort_by_key(|one| one.ticket().order);
    moved.push(newcomer);
    let mut seat = holding;
    for one in &mut moved {
        drop(seat);
        seat = granted(one).expect("in the order of the tickets, the newcomer last");
    }
}

#[test]
fn a_raised_limit_lets_those_who_wait_in() {
    let (admission, queue, seats) = line(1, 1);
    let _holding = queue.sit(&seats[0]).unwrap();
    let mut waiting: Vec<Waiting> = (0..4).map(|_| join(&queue)).collect();
    for (max, want) in [(3, 2), (0, 4)] {
        admission.limit(NonZeroU32::new(max), Duration::ZERO);
        admission.open(&queue, seats.clone());
        assert_eq!(4 - queue.waiting(), want, "limit {max}");
    }
    let held: Vec<Seat> = waiting.iter_mut().filter_map(granted).collect();
    assert_eq!(held.len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_slow_start_raises_the_limit_while_nothing_else_moves() {
    let (admission, queue, seats) = line(4, 1);
    admission.limit(NonZeroU32::new(4), Duration::from_secs(15));
    admission.begin_slow_start(&seats[0]);
    let began = Instant::now();
    let mut held = vec![queue.sit(&seats[0]).unwrap()];
    assert!(queue.sit(&seats[0]).is_none(), "a quarter of four");
    for (n, at_most_s) in [(2, 6), (3, 11), (4, 16)] {
        held.push(join(&queue).seat().await.unwrap());
        let passed = began.elapsed();
        assert!(passed <= Duration::from_secs(at_most_s), "seat {n} after {passed:?}");
    }
    assert!(began.elapsed() >= Duration::from_secs(15), "{:?}", began.elapsed());
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Come,
    Finish(usize),
    Leave(usize),
    /// A limit of 1 to 4.
    Limit(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => Just(Step::Come),
        3 => any::<usize>().prop_map(Step::Finish),
        1 => any::<usize>().prop_map(Step::Leave),
        1 => (1u32..5).prop_map(Step::Limit),
    ];
    proptest::collection::vec(step, 0..200)
}

proptest! {
    /// One target; whoever comes is a number, and the model is a list.
    #[test]
    fn any_history_is_first_come_first_served(steps in steps()) {
        let (admission, queue, seats) = line(2, 1);
        let mut max = 2;
        let (mut sitting, mut standing) = (Vec::<(u32, Seat)>::new(), VecDeque::<(u32, Waiting)>::new());
        let (mut model_sitting, mut model_standing) = (Vec::<u32>::new(), VecDeque::<u32>::new());
        for (number, step) in (0u32..).zip(steps) {
            match step {
                Step::Come => {
                    let at_once = queue.sit(&seats[0]);
                    prop_assert_eq!(at_once.is_some(), model_standing.is_empty() && model_sitting.len() < max);
                    match at_once {
                        Some(seat) => { sitting.push((number, seat)); model_sitting.push(number) }
                        None => { standing.push_back((number, join(&queue))); model_standing.push_back(number) }
                    }
                }
                Step::Finish(at) if !sitting.is_empty() => {
                    let at = at % sitting.len();
                    let (gone, seat) = sitting.swap_remove(at);
                    drop(seat);
                    model_sitting.retain(|one| *one != gone);
                }
                Step::Leave(at) if !standing.is_empty() => {
                    let at = at % standing.len();
                    let (gone, waiting) = standing.remove(at).unwrap();
                    drop(waiting);
                    model_standing.retain(|one| *one != gone);
                }
                Step::Limit(limit) => {
                    max = limit as usize;
                    admission.limit(NonZeroU32::new(limit), Duration::ZERO);
                    admission.open(&queue, seats.clone());
                }
                Step::Finish(_) | Step::Leave(_) => {}
            }
            while model_sitting.len() < max && let Some(next) = model_standing.pop_front() {
                model_sitting.push(next);
            }
            while let Some((number, waiting)) = standing.front_mut() && let Some(seat) = granted(waiting) {
                sitting.push((*number, seat));
                standing.pop_front();
            }
            let mut numbers: Vec<u32> = sitting.iter().map(|(number, _)| *number).collect();
            numbers.sort_unstable();
            model_sitting.sort_unstable();
            prop_assert_eq!(&numbers, &model_sitting);
            prop_assert_eq!(seats[0].taken() as usize, model_sitting.len());
            prop_assert_eq!(queue.waiting(), model_standing.len());
        }
    }
}

/// A cheap source of decisions, one per thread.
fn chance(state: &mut model::balance::Random, of: usize) -> bool {
    state.below(of) == 0
}

/// Threads come, work, leave early and are served, while another one publishes: no seat too many, none lost,
/// nobody forgotten. Every wait ends, or the test does.
#[test]
fn threads_that_race_lose_no_seat_and_forget_nobody() {
    const THREADS: u64 = 4;
    const TASKS: usize = 24;
    const ROUNDS: usize = 150;
    const MAX: u32 = 3;
    let (admission, queue, seats) = line(MAX, 2);
    let inside: [AtomicU32; 2] = [AtomicU32::new(0), AtomicU32::new(0)];
    let over = AtomicBool::new(false);
    let served = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let (queue, seats, inside, served) = (&queue, &seats, &inside, &served);
        let workers: Vec<_> = (0..THREADS)
            .map(|thread| {
                scope.spawn(move || {
                    let runtime =
                        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
                    let tasks = (0..TASKS).map(|task| {
                        let random = model::balance::Random::new(thread * 1000 + task as u64 + 1);
                        come_and_go(queue, seats, inside, served, random, ROUNDS)
                    });
                    let all = futures_util::future::join_all(tasks);
                    runtime
                        .block_on(async { tokio::time::timeout(Duration::from_secs(60), all).await.is_ok() })
                })
            })
            .collect();
        let publisher = scope.spawn(|| {
            let mut only_one = false;
            while !over.load(Ordering::Relaxed) {
                // One target leaves and comes back.
                only_one = !only_one;
                admission.open(queue, if only_one { seats[..1].to_vec() } else { seats.to_vec() });
                std::thread::yield_now();
            }
            admission.open(queue, seats.to_vec());
        });
        let served: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        over.store(true, Ordering::Relaxed);
        publisher.join().unwrap();
        assert!(served.into_iter().all(|in_time| in_time.unwrap()), "somebody was never served");
    });
    assert_eq!((seats[0].taken(), seats[1].taken(), queue.waiting()), (0, 0, 0));
    assert_eq!(admission.waiting.load(Ordering::SeqCst), 0);
    assert!(served.load(Ordering::Relaxed) > ROUNDS, "the race was run");
}

async fn come_and_go(
    queue: &Queue,
    seats: &[Arc<Seats>],
    inside: &[AtomicU32; 2],
    served: &AtomicUsize,
    mut random: model::balance::Random,
    rounds: usize,
) {
    for _ in 0..rounds {
        let first = random.below(2);
        let at_once = queue.sit(&seats[first]).or_else(|| queue.sit(&seats[1 - first]));
        let seat = match at_once {
            Some(seat) => seat,
            None => {
                let mut waiting = queue.join(&Turn::New, usize::MAX).ok().unwrap();
                if chance(&mut random, 4) {
                    // The client leaves, perhaps in the moment in which it is served.
                    for _ in 0..random.below(4) {
                        tokio::task::yield_now().await;
                    }
                    continue;
                }
                waiting.seat().await.expect("this line never ends")
            }
        };
        let index = usize::from(seat.is_of(&seats[1]));
        let together = inside[index].fetch_add(1, Ordering::SeqCst) + 1;
        assert!(together <= 3, "{together} in flight on one target");
        if chance(&mut random, 2) {
            tokio::task::yield_now().await;
        }
        served.fetch_add(1, Ordering::Relaxed);
        inside[index].fetch_sub(1, Ordering::SeqCst);
        drop(seat);
    }
}
