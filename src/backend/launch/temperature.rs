//! The part of an adaptive temperature's step that does not depend on logits, as kernels take it.

use super::kernel_params;
use crate::temperature::{AdaptiveTemperature, Course, check_temperature};
use crate::{Result, Scope, Statistics, Temperature};

kernel_params! {
    /// The step that τ takes with the statistics of a batch.
    pub struct TemperatureStep in "temperature.cuh" {
        alpha: f64, minimum: f64, maximum: f64, log_odds: f64, centred: u64,
    }
}

kernel_params! {
    /// The statistics that do not depend on logits.
    pub struct StatisticsSizes in "temperature.cuh" {
        rows: f64, tokens: f64, fan_out: f64, log_sizes: f64,
    }
}

impl StatisticsSizes {
    pub(super) fn of(statistics: &Statistics) -> Self {
        let [rows, tokens, _, _, _, fan_out, _, _, log_sizes]: [f64; Statistics::LENGTH] =
            bytemuck::cast(*statistics);
        Self {
            rows,
            tokens,
            fan_out,
            log_sizes,
        }
    }
}

/// A plan for the temperature of a forward pass, which is known before the pass or takes a step with its statistics.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TemperaturePlan {
    /// The temperature before the pass, unless it is on the device.
    pub(super) given: f64,
    /// Whether a temperature on the device, if there is one, takes precedence over `given`.
    pub(super) continues: bool,
    /// The step that τ takes with the statistics of the pass; `None` if τ does not depend on them.
    pub(super) step: Option<TemperatureStep>,
}

impl TemperaturePlan {
    /// Plans a temperature that does not depend on statistics.
    #[must_use]
    pub fn at(temperature: f64) -> Self {
        Self {
            given: temperature,
            continues: false,
            step: None,
        }
    }

    /// Plans a step of `temperature` with statistics of these sizes.
    pub(super) fn next(temperature: &Temperature, sizes: &Statistics) -> Result<Self> {
        match temperature {
            Temperature::Fixed(value) => {
                check_temperature("temperature", *value).map(|()| Self::at(*value))
            }
            Temperature::Adaptive(adaptive) => Self::next_adaptive(adaptive, sizes),
        }
    }

    fn next_adaptive(adaptive: &AdaptiveTemperature, sizes: &Statistics) -> Result<Self> {
        check_temperature("temperature", adaptive.value())?;
        let strategy = &adaptive.strategy;
        let continuing = Self {
            given: adaptive.value(),
            continues: true,
            step: None,
        };
        Ok(match adaptive.course(sizes)? {
            Course::Starts => Self::at(strategy.initial),
            Course::Stays => continuing,
            Course::Follows { log_odds } => Self {
                step: Some(TemperatureStep {
                    alpha: strategy.alpha,
                    minimum: strategy.minimum,
                    maximum: strategy.maximum,
                    log_odds,
                    centred: u64::from(strategy.scope == Scope::Branching),
                }),
                ..continuing
            },
        })
    }

    /// Returns whether the temperature, and with it every row, depends on the statistics.
    pub(super) fn adapts(&self) -> bool {
        self.step.is_some()
    }
}
