//! Orders of threads: drawn from a seed, and without influence on results.

use crate::faulty_kernels::{TestLaunch, assert_fault};
use candle_trie_emulator::{Emulator, Fault, same_for_every_schedule};

fn results(
    kernel: &str,
    read: impl Fn(&mut TestLaunch) -> Result<Vec<f32>, Fault>,
) -> Result<Vec<f32>, Fault> {
    same_for_every_schedule(0..8, |emulator: Emulator| {
        let mut launch = TestLaunch {
            emulator,
            ..TestLaunch::new(1, 64)
        };
        // Numbers whose sum depends on the order, and zeros to add them to.
        let numbers: Vec<f32> = (1..=64).map(|number| 1.0 / number as f32).collect();
        launch.input = launch.memory.upload("numbers", &numbers);
        let mut launch = launch.with_output();
        launch.run(kernel)?;
        read(&mut launch)
    })
}

fn results_without_order_are_the_same() {
    let counters = results("schedule_sound", |launch| {
        Ok(launch
            .memory
            .download(launch.counter)?
            .into_iter()
            .map(|count| count as f32)
            .collect())
    });
    assert_eq!(counters.unwrap(), [2016.0, 63.0]);
}

fn results_that_depend_on_the_order_are_caught() {
    for kernel in ["schedule_float_sum", "schedule_first_come"] {
        let fault = results(kernel, TestLaunch::output).unwrap_err();
        println!("{kernel}: {fault}");
        assert_fault!(fault, Fault::ScheduleDependent { seeds: (0, _), .. });
    }
}

fn a_seed_gives_the_same_order_again() {
    let run = |seed| {
        let mut launch = TestLaunch {
            emulator: Emulator::with_seed(seed),
            ..TestLaunch::new(2, 64)
        };
        launch.run("schedule_first_come").unwrap();
        launch.output().unwrap()
    };
    assert_eq!(run(3), run(3));
    assert_ne!(run(3), run(4));
}

candle_trie_emulator::emulated_tests! {
    results_without_order_are_the_same,
    results_that_depend_on_the_order_are_caught,
    a_seed_gives_the_same_order_again,
}
