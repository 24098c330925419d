//! The Pareto front: what nothing else beats in both respects.

/// Indices of the points `(cost, worth)` that no other point beats, which is to cost no more and be worth no less, and
/// one of them strictly; by cost. Points that are no numbers are on no front.
pub fn front(points: &[(f64, f64)]) -> Vec<usize> {
    let finite = |index: &usize| points[*index].0.is_finite() && points[*index].1.is_finite();
    let mut order: Vec<usize> = (0..points.len()).filter(finite).collect();
    order.sort_by(|&a, &b| points[a].0.total_cmp(&points[b].0).then(points[b].1.total_cmp(&points[a].1)));
    let mut front: Vec<usize> = Vec::new();
    for index in order {
        let equal = |last: &usize| points[*last] == points[index];
        if front.last().is_none_or(|last| points[index].1 > points[*last].1 || equal(last)) {
            front.push(index);
        }
    }
    front
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn beats(a: (f64, f64), b: (f64, f64)) -> bool {
        a.0 <= b.0 && a.1 >= b.1 && a != b
    }

    #[test]
    fn cheaper_and_better_points_beat_others() {
        assert_eq!(front(&[(3.0, 3.0), (1.0, 1.0), (2.0, 0.5), (2.0, 2.0), (4.0, 3.0), (1.0, f64::NAN)]), [1, 3, 0]);
        assert_eq!(front(&[]), [0; 0]);
    }

    proptest! {
        #[test]
        fn a_point_is_on_the_front_if_and_only_if_nothing_beats_it(
            points in prop::collection::vec((0..6_u8, 0..6_u8), 0..24)
        ) {
            let points: Vec<(f64, f64)> = points.into_iter().map(|(x, y)| (x.into(), y.into())).collect();
            let front = front(&points);
            for (index, &point) in points.iter().enumerate() {
                let beaten = points.iter().any(|&other| beats(other, point));
                prop_assert_eq!(front.contains(&index), !beaten);
            }
            prop_assert!(front.is_sorted_by(|&a, &b| points[a].0 <= points[b].0));
        }
    }
}
