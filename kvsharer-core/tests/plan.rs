//! Plans: routes of any policy are either refused with the reason or give a valid plan.

use kvsharer_core::{
    Budget, Group, Kv, KvShape, LayerId, LayerKvPolicy, ModelShape, Plan, PlanError, Route, Sharing, Source, Stack,
};
use proptest::prelude::*;

/// Routes written down by hand, valid or not.
struct Routes(Vec<Route>);

impl LayerKvPolicy for Routes {
    fn name(&self) -> String {
        "routes".into()
    }
    fn route(&self, layer: LayerId) -> Option<Route> {
        self.0.get(layer.0).copied()
    }
}

/// Evicts to a fixed number of tokens.
struct Bounded(usize);

impl LayerKvPolicy for Bounded {
    fn name(&self) -> String {
        format!("budget:{}", self.0)
    }
    fn budget(&self, _group: &Group) -> Option<Budget> {
        Some(self.0.into())
    }
}

fn shape(layers: usize) -> ModelShape {
    ModelShape::uniform(layers, KvShape::new(2, 4))
}

fn borrow(donor: usize) -> Source {
    Source::Borrow(LayerId(donor))
}

fn key(source: Source) -> Route {
    Route { key: source, value: Source::Own }
}

#[test]
fn a_chain_is_refused_and_named() {
    let own = Route::default();
    let routes = Routes(vec![own, own, own, key(borrow(1)), own, key(borrow(3)), key(borrow(5))]);
    let error = Plan::new(&shape(7), &Stack::new().with(routes)).unwrap_err();
    assert!(error.to_string().contains("the key map has the chain 5 -> 3 -> 1"), "{error}");
}

#[test]
fn two_routers_are_refused_and_named() {
    let stack = Stack::new().with(Sharing::both([(2, 0)]).unwrap()).with(Routes(vec![Route::default(); 3]));
    let error = Plan::new(&shape(3), &stack).unwrap_err();
    assert!(
        matches!(&error, PlanError::TwoRouters { first, second, .. } if first == "sharing:2=0" && second == "routes")
    );
}

#[test]
fn layers_of_other_shapes_or_windows_cannot_borrow() {
    let windowed = KvShape { window: Some(16), ..KvShape::new(2, 4) };
    for other in [KvShape::new(1, 4), KvShape::new(2, 8), windowed] {
        let model = ModelShape::new(vec![KvShape::new(2, 4), other]);
        let error = Plan::new(&model, &Stack::new().with(Sharing::both([(1, 0)]).unwrap())).unwrap_err();
        assert!(matches!(error, PlanError::ShapeMismatch { .. }), "{error}");
    }
}

#[test]
fn a_budget_bounds_the_bytes_and_nothing_is_not_a_budget() {
    let plan = Plan::new(&shape(3), &Stack::new().with(Bounded(10))).unwrap();
    let cell = 2 * 4 * 4;
    assert_eq!(plan.bytes(1, 100, 4), 6 * 10 * cell);
    assert_eq!(plan.bytes(1, 7, 4), 6 * 7 * cell);
    // While the first layer prefills 100 tokens, its keys and values are held in full beside the buffers.
    assert_eq!(plan.prefill_peak_bytes(1, 100, 100, 4), 6 * 10 * cell + 2 * 100 * cell);
    let error = Plan::new(&shape(3), &Stack::new().with(Bounded(0))).unwrap_err();
    assert!(matches!(error, PlanError::EmptyBudget { .. }), "{error}");
}

#[test]
fn boxed_and_borrowed_policies_answer_as_themselves() {
    let mut mine = Bounded(5);
    let boxed: Box<dyn LayerKvPolicy> = Box::new(Sharing::both([(2, 1)]).unwrap());
    let plan = Plan::new(&shape(3), &Stack::new().with(boxed).with(&mut mine)).unwrap();
    assert_eq!(plan.slots().len(), 4);
    assert!(plan.groups().iter().all(|group| group.capacity(100) == 5));
}

fn any_source() -> impl Strategy<Value = Source> {
    prop_oneof![2 => Just(Source::Own), 1 => (0..9_usize).prop_map(borrow)]
}

proptest! {
    #[test]
    fn any_routes_are_refused_or_give_a_plan_whose_donors_own_their_slots(
        routes in proptest::collection::vec((any_source(), any_source()), 0..8),
    ) {
        let layers = routes.len();
        let routes: Vec<Route> = routes.into_iter().map(|(key, value)| Route { key, value }).collect();
        if let Ok(plan) = Plan::new(&shape(layers), &Stack::new().with(Routes(routes.clone()))) {
            prop_assert_eq!(plan.layers().len(), layers);
            for (layer, route) in routes.iter().enumerate() {
                for (kind, source) in [(Kv::Key, route.key), (Kv::Value, route.value)] {
                    let owner = match source { Source::Own => LayerId(layer), Source::Borrow(donor) => donor };
                    prop_assert_eq!(plan.slot(plan.layers()[layer].of(kind)).owner, owner);
                    prop_assert!(plan.owns(owner, kind));
                }
            }
            let grouped: usize = plan.groups().iter().map(|group| group.slots.len()).sum();
            prop_assert_eq!(grouped, plan.slots().len());
            prop_assert_eq!(plan.bytes(3, 10, 2), plan.slots().len() * 3 * 10 * 2 * 4 * 2);
            let most = plan.largest_batch(10, 2, 10_000);
            prop_assert!(layers == 0 || plan.bytes(most, 10, 2) <= 10_000 && plan.bytes(most + 1, 10, 2) > 10_000);
        }
    }
}
