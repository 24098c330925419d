//! Greedy decoding that stays on the device: steps planned ahead and recorded once, tokens read back late.

use crate::{Decoder, ModelError};
use burn::tensor::{Device, Graph, Int, Tensor, TensorData, capture};
use kvsharer_core::{Cache, SearchModel, put_row};

/// Steps that run before others are recorded: [`capture`] warms up with so many.
const WARM_UP: usize = 3;

/// Scores compared by one thread of a device first.
const BLOCK: usize = 512;

type Step<'a> = Box<dyn FnMut() -> Result<Tensor<2, Int>, ModelError> + 'a>;

/// Greedy decoding in steps that are all the same operations. On CUDA they are recorded as a graph and replayed, which
/// takes the host out of the loop; elsewhere they are run one by one.
///
/// # Example
/// ```
/// use burn::tensor::Device;
/// use kvsharer_core::{SearchModel, Stack};
/// use kvsharer_models::{DeviceLoop, ModelFiles, random_config};
///
/// let files = ModelFiles::random("tiny", random_config("tiny").unwrap(), 7);
/// let model = files.load(&Device::flex(), burn::tensor::DType::F32).unwrap();
/// let mut cache = model.cache(Stack::new(), model.cache_options(1, 16)).unwrap();
/// model.forward(&[&[5, 3, 8]], &mut cache).unwrap();
/// let mut steps = DeviceLoop::new(&model, &mut cache, &[4], 10).unwrap().expect("a full cache can be planned");
/// steps.run(steps.left()).unwrap();
/// assert_eq!(steps.tokens().unwrap()[0].len(), 10);
/// ```
pub struct DeviceLoop<'a> {
    graph: Graph<Result<Tensor<2, Int>, ModelError>, Step<'a>>,
    device: Device,
    batch: usize,
    steps: usize,
    done: usize,
}

impl<'a> DeviceLoop<'a> {
    /// Plans up to `steps` steps behind what is cached, the first of which runs the tokens `first`, one a row; `None`
    /// where steps cannot be planned ahead ([`Cache::plan_steps`]) or are too few to be worth it. Some of them run here.
    ///
    /// The cache must not be used until all have run, or it is reset.
    ///
    /// # Errors
    /// [`ModelError::TokenOutOfRange`], or whatever the cache refuses.
    pub fn new(
        model: &'a Decoder,
        cache: &'a mut Cache<'_>,
        first: &[u32],
        steps: usize,
    ) -> Result<Option<Self>, ModelError> {
        let vocab = model.config().vocab;
        if let Some(&id) = first.iter().find(|&&id| id as usize >= vocab) {
            return Err(ModelError::TokenOutOfRange { id, vocab });
        }
        let start = cache.seen();
        let Some(turns) = model.step_turns(start..start + steps) else { return Ok(None) };
        if steps <= WARM_UP + 1 || first.len() != cache.options().batch {
            return Ok(None);
        }
        let Some(mut planned) = cache.plan_steps(steps)? else { return Ok(None) };
        let (steps, batch, device) = (planned.positions().len(), first.len(), model.device());
        let ids = first.iter().map(|&id| i64::from(id)).chain(std::iter::repeat_n(0, batch * steps)).collect();
        let mut log = Some(Tensor::<2, Int>::from_data(TensorData::new::<i64, _>(ids, [steps + 1, batch]), &device));
        // No state is reshaped: it must stay where it is.
        let mut at = Some(Tensor::<2, Int>::zeros([1, 1], &device));
        let zero = Tensor::<1, Int>::zeros([1], &device);
        let step: Step<'a> = Box::new(move || {
            let (Some(known), Some(now)) = (log.take(), at.take()) else { return Err(ModelError::EmptyPrompt) };
            let step = now.clone().reshape([1]);
            let ids = known.clone().select(0, step.clone()).reshape([batch, 1]);
            let hidden = model.step(ids, &step, &turns, &mut planned)?;
            let next = greedy(model.logits(hidden).reshape([batch, vocab]));
            let after = now.clone() + 1;
            let written = put_row(known, next.reshape([1, batch]), &after.clone().reshape([1]));
            at = Some(put_row(now, after, &zero));
            log = Some(written.clone());
            Ok(written)
        });
        let graph = capture(&device, step);
        let done = if graph.is_hardware() { WARM_UP } else { WARM_UP + 1 };
        match graph.output() {
            Ok(_) => Ok(Some(Self { graph, device, batch, steps, done })),
            // Errors are not cloned; the next run gives the same one.
            Err(_) => Ok(None),
        }
    }

    /// Steps that have not run.
    pub fn left(&self) -> usize {
        self.steps - self.done
    }

    /// Whether steps are replayed by the hardware.
    pub fn is_recorded(&self) -> bool {
        self.graph.is_hardware()
    }

    /// Runs the next `steps` steps, of those left; they may still be running when this returns.
    ///
    /// # Errors
    /// Whatever the cache refuses.
    pub fn run(&mut self, steps: usize) -> Result<(), ModelError> {
        for _ in 0..steps.min(self.left()) {
            // Safety: all that a step reads or writes belongs to the closure or to what it borrows, which lives as long
            // as the graph does and is reached through it alone.
            #[allow(unsafe_code)]
            let output = unsafe { self.graph.replay() };
            if output.is_err() {
                return Err(ModelError::Device("a step that ran before failed".into()));
            }
            self.done += 1;
        }
        Ok(())
    }

    /// Waits for what runs.
    ///
    /// # Errors
    /// [`ModelError::Device`] if the device fails.
    pub fn wait(&self) -> Result<(), ModelError> {
        self.device.sync().map_err(|error| ModelError::Device(error.to_string()))
    }

    /// The tokens that the steps so far gave, by row.
    ///
    /// # Errors
    /// [`ModelError::Device`] if the device fails.
    pub fn tokens(&self) -> Result<Vec<Vec<u32>>, ModelError> {
        let Ok(log) = self.graph.output() else { return Ok(vec![Vec::new(); self.batch]) };
        let ids = log.clone().try_into_vec_as::<i64>().map_err(|error| ModelError::Device(error.to_string()))?;
        let of = |row: usize| (1..=self.done).map(|step| ids[step * self.batch + row] as u32).collect();
        Ok((0..self.batch).map(of).collect())
    }
}

/// The token of the best score in each row, `[row, vocab]` to `[row]`: of each block first, as one thread a row would
/// look at all of them alone.
fn greedy(logits: Tensor<2>) -> Tensor<1, Int> {
    let [rows, vocab] = logits.dims();
    let block = (1..=BLOCK).rev().find(|block| vocab % block == 0).unwrap_or(1);
    let (best, within) = logits.reshape([rows, vocab / block, block]).max_dim_with_indices(2);
    let place = best.reshape([rows, vocab / block]).argmax(1);
    let within = within.reshape([rows, vocab / block]).gather(1, place.clone());
    (place * block as i64 + within).reshape([rows])
}
