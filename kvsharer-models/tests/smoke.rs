#![allow(missing_docs)]
use burn::tensor::*;
use kvsharer_core::*;
use kvsharer_models::*;
use std::time::Instant;
#[test]
fn smoke() {
    let t = Instant::now();
    let files = open_model(&std::env::var("M").unwrap(), 0).unwrap();
    let tok = files.tokenizer().unwrap();
    println!("open {:?}", t.elapsed());
    let t = Instant::now();
    let dev = Device::flex();
    let model = files.load(&dev, DType::F32).unwrap();
    println!("load {:?}", t.elapsed());
    let mut cache = Cache::new(model.shape(), Stack::new(), model.cache_options(1, 700), &dev).unwrap();
    let ids = tok.encode("The capital of France is").unwrap();
    let g = generate(&model, &tok, &ids, &mut cache, &GenerateOptions { max_tokens: 40, ..Default::default() }, |t| print!("{t}")).unwrap();
    println!("\n{:?} decode ms/token {}", g.stopped, g.decode.as_secs_f64() * 1e3 / g.ids.len() as f64);
    let text = std::fs::read_to_string("/work/main/kvsharer-eval/data/demo.txt").unwrap();
    let ids = tok.encode(&text).unwrap();
    for n in [64, 512, 1024] {
        for _ in 0..2 {
            let mut cache = Cache::new(model.shape(), Stack::new(), model.cache_options(1, 1100), &dev).unwrap();
            let t = Instant::now();
            let h = model.forward(&[&ids[..n]], &mut cache).unwrap();
            let _ = h.into_data();
            println!("prefill {n}: {:.0} tok/s", n as f64 / t.elapsed().as_secs_f64());
        }
    }
    let rows: Vec<&[u32]> = (0..30).map(|i| &ids[i * 64..i * 64 + 64]).collect();
    for _ in 0..2 {
        let mut cache = Cache::new(model.shape(), Stack::new(), model.cache_options(30, 64), &dev).unwrap();
        let t = Instant::now();
        let h = model.forward(&rows, &mut cache).unwrap();
        let _ = h.into_data();
        println!("30x64: {:.0} tok/s", 1920.0 / t.elapsed().as_secs_f64());
    }
    let mut cache = Cache::new(model.shape(), Stack::new(), model.cache_options(1, 700), &dev).unwrap();
    model.forward(&[&ids[..512]], &mut cache).unwrap();
    let t = Instant::now();
    for i in 0..40 { let h = model.forward(&[&ids[512 + i..513 + i]], &mut cache).unwrap(); let _ = model.logits(h).into_data(); }
    println!("decode at 512: {:.1} ms", t.elapsed().as_secs_f64() * 1e3 / 40.0);
}
