//! GGUF files: golden dequantisation, a complete model file, and one file a way to be wrong.

mod import_support;

use import_support::{GgufWriter, array, base64, fixture, json, string};
use kvsharer_models::import::gguf::dequantize;
use kvsharer_models::import::{Fault, GgufFile, ImportError, SourceDtype, TensorSource, load_shaped};

fn open(file: &GgufWriter) -> Result<GgufFile, ImportError> {
    let folder = tempfile::tempdir().unwrap();
    // The mapping outlives the name.
    GgufFile::open(file.write(folder.path()))
}

/// The fault of a file that contradicts its format.
fn fault(file: &GgufWriter) -> Fault {
    match open(file).unwrap_err() {
        ImportError::Broken { fault, .. } => fault,
        other => panic!("expected a broken file, got: {other}"),
    }
}

/// Values made by the Python package `gguf`; see fixtures/gguf_dequant.py.
#[test]
fn every_type_is_dequantised_bit_for_bit() {
    let golden = json("gguf_dequant.json");
    for dtype in [
        SourceDtype::F32,
        SourceDtype::F16,
        SourceDtype::BF16,
        SourceDtype::Q8_0,
        SourceDtype::Q4_0,
        SourceDtype::Q4_1,
        SourceDtype::Q4_K,
        SourceDtype::Q6_K,
    ] {
        let case = &golden["types"][dtype.to_string()];
        let (elements, bytes) = dtype.block().unwrap();
        assert_eq!(
            (case["block_size"].as_u64(), case["type_size"].as_u64()),
            (Some(elements as u64), Some(bytes as u64))
        );
        let values = dequantize(&dtype, &base64(case["raw"].as_str().unwrap())).unwrap();
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert!(bytes == base64(case["f32"].as_str().unwrap()), "{dtype}");
    }
}

#[test]
fn a_model_file_gives_tensors_and_metadata() {
    let file = GgufFile::open(fixture("tiny.gguf")).unwrap();
    let metadata = file.metadata();
    assert_eq!(metadata.require::<&str>("general.architecture").unwrap(), "llama");
    assert_eq!(metadata.require::<u32>("llama.block_count").unwrap(), 2);
    assert_eq!(metadata.require::<f32>("llama.attention.layer_norm_rms_epsilon").unwrap(), 1e-5);
    assert!(!metadata.require::<bool>("tokenizer.ggml.add_bos_token").unwrap());
    assert_eq!(metadata.require::<Vec<&str>>("tokenizer.ggml.tokens").unwrap().len(), 300);
    assert_eq!(metadata.get::<u32>("no.such.key").unwrap(), None);

    let names = file.names();
    assert!(names.is_sorted());
    assert_eq!(names.len(), 3 + 2 * 9);
    // Stored as [in, out] = [32, 64], given as PyTorch has it.
    let up = file.info("blk.0.ffn_up.weight").unwrap();
    assert_eq!((up.shape.as_slice(), &up.dtype), (&[64, 32][..], &SourceDtype::F16));
    for name in names {
        let info = file.info(name).unwrap();
        let data = load_shaped(&file, name, &info.shape).unwrap();
        let values: Vec<f32> = data.try_to_vec_as().unwrap();
        assert_eq!(values, dequantize(&info.dtype, &file.raw(name).unwrap()).unwrap(), "{name}");
        assert!(values.iter().all(|value| value.is_finite()), "{name}");
    }
}

#[test]
fn metadata_of_every_kind_is_read() {
    let nested = array(9, 1, &array(4, 2, &[1, 0, 0, 0, 2, 0, 0, 0]));
    let file = open(
        &GgufWriter::default()
            .entry("u8", 0, &[255])
            .entry("i8", 1, &[255])
            .entry("u16", 2, &[1, 1])
            .entry("i16", 3, &[254, 255])
            .u32("u32", 7)
            .entry("i32", 5, &(-7i32).to_le_bytes())
            .entry("f32", 6, &1.5f32.to_le_bytes())
            .bool("bool", true)
            .str("str", "tëxt")
            .strs("strs", &["a", ""])
            .entry("nested", 9, &nested)
            .entry("u64", 10, &u64::MAX.to_le_bytes())
            .entry("i64", 11, &i64::MIN.to_le_bytes())
            .entry("f64", 12, &2.5f64.to_le_bytes()),
    )
    .unwrap();
    let metadata = file.metadata();
    assert_eq!(metadata.require::<u32>("u8").unwrap(), 255);
    assert_eq!(metadata.require::<i32>("i8").unwrap(), -1);
    assert_eq!(metadata.require::<u32>("u16").unwrap(), 257);
    assert_eq!(metadata.require::<i32>("i16").unwrap(), -2);
    assert_eq!(metadata.require::<usize>("u32").unwrap(), 7);
    assert_eq!(metadata.require::<i32>("i32").unwrap(), -7);
    assert_eq!(metadata.require::<f32>("f32").unwrap(), 1.5);
    assert!(metadata.require::<bool>("bool").unwrap());
    assert_eq!(metadata.require::<&str>("str").unwrap(), "tëxt");
    assert_eq!(metadata.require::<Vec<&str>>("strs").unwrap(), ["a", ""]);
    assert_eq!(metadata.require::<u64>("u64").unwrap(), u64::MAX);
    assert_eq!(metadata.require::<i64>("i64").unwrap(), i64::MIN);
    assert_eq!(metadata.value("f64").unwrap().unwrap().to_string(), "the float 2.5");
    assert_eq!(metadata.value("nested").unwrap().unwrap().to_string(), "a list of 1 values of kind Array");
    assert_eq!(metadata.keys().count(), 14);
}

#[test]
fn wrong_metadata_names_its_key() {
    let file = open(&GgufWriter::default().str("llama.block_count", "two").entry("big", 10, &[255; 8])).unwrap();
    for (key, found) in
        [("llama.block_count", "the text \"two\""), ("big", "18446744073709551615"), ("absent", "nothing")]
    {
        let message = file.metadata().require::<u32>(key).unwrap_err().to_string();
        assert!(message.contains(key) && message.contains(found), "{message}");
    }
}

#[test]
fn an_alignment_of_its_own_is_honoured() {
    let mut file = GgufWriter::default().u32("general.alignment", 64);
    file.alignment = 64;
    let file = file.tensor("a", &[1], 0, &1f32.to_le_bytes()).tensor("b", &[2], 1, &[0, 0x3c, 0, 0x40]);
    let file = open(&file).unwrap();
    assert_eq!(file.load("a").unwrap().try_to_vec_as::<f32>().unwrap(), [1.0]);
    assert_eq!(file.load("b").unwrap().try_to_vec_as::<f32>().unwrap(), [1.0, 2.0]);
}

#[test]
fn other_files_are_not_models() {
    let not_a_model = |bytes: &[u8]| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.gguf");
        std::fs::write(&path, bytes).unwrap();
        GgufFile::open(path).unwrap_err()
    };
    assert!(matches!(not_a_model(b"PK\x03\x04zip"), ImportError::NotAModel { .. }));
    assert!(matches!(not_a_model(b""), ImportError::Truncated { .. }));
    for (version, word) in [(1u32, "version 1"), (4, "version 4"), (3 << 24, "big-endian")] {
        let message = not_a_model(&[&b"GGUF"[..], &version.to_le_bytes()].concat()).to_string();
        assert!(message.contains(word), "{message}");
    }
}

#[test]
fn a_file_cut_anywhere_in_its_header_is_refused() {
    let file = GgufWriter::default().str("key", "value").u32("other", 3).tensor("t", &[4], 0, &[0; 16]);
    let bytes = file.bytes();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.gguf");
    for length in 0..bytes.len() {
        std::fs::write(&path, &bytes[..length]).unwrap();
        assert!(matches!(GgufFile::open(&path), Err(ImportError::Truncated { .. })), "{length}");
    }
}

#[test]
fn absurd_counts_are_refused() {
    let file = GgufWriter::default();
    for (entry_count, tensor_count) in [(u64::MAX, 0), (0, u64::MAX), (1 << 40, 1 << 40)] {
        let file = GgufWriter { entry_count, tensor_count, ..file.clone() };
        assert!(matches!(open(&file), Err(ImportError::Truncated { .. })));
    }
    for value in [array(4, u64::MAX, &[0; 64]), array(0, 1000, &[0; 64]), array(8, 1000, &[0; 64])] {
        assert!(matches!(open(&file.clone().entry("list", 9, &value)), Err(ImportError::Truncated { .. })));
    }
}

#[test]
fn broken_metadata_is_refused() {
    let file = GgufWriter::default();
    assert!(matches!(fault(&file.clone().u32("a", 1).u32("a", 1)), Fault::Duplicate));
    assert!(matches!(fault(&file.clone().entry("a", 13, &[0; 8])), Fault::UnknownKind { kind: 13 }));
    assert!(matches!(fault(&file.clone().entry("a", 9, &array(99, 0, &[]))), Fault::UnknownKind { kind: 99 }));
    assert!(matches!(fault(&file.clone().entry("a", 7, &[2])), Fault::NotABool { byte: 2 }));
    let mut latin1 = string("caf_");
    latin1[11] = 0xe9;
    assert!(matches!(fault(&file.clone().entry("a", 8, &latin1)), Fault::NotUtf8));
    for alignment in [0, 3, 48] {
        assert!(matches!(
            fault(&file.clone().u32("general.alignment", alignment)),
            Fault::BadAlignment { found } if found == alignment
        ));
    }
    let deep = (0..9).fold(array(4, 0, &[]), |inner, _| array(9, 1, &inner));
    assert!(matches!(fault(&file.clone().entry("a", 9, &deep)), Fault::TooDeep { .. }));
}

#[test]
fn broken_tensors_are_refused() {
    let file = GgufWriter::default().tensor("t", &[32], 0, &[0; 128]);
    assert!(matches!(fault(&file.clone().tensor("t", &[1], 0, &[0; 4])), Fault::Duplicate));
    assert!(matches!(fault(&file.clone().tensor_at("u", &[1], 0, 96)), Fault::Overlap { other } if other == "t"));
    assert!(matches!(fault(&file.clone().tensor_at("u", &[1], 0, 8)), Fault::Unaligned { offset: 8, alignment: 32 }));
    assert!(matches!(fault(&file.clone().tensor_at("u", &[1; 5], 0, 128)), Fault::TooManyAxes { found: 5, limit: 4 }));
    for dims in [[u64::MAX, 2], [1 << 62, 4], [1 << 61, 2]] {
        assert!(matches!(fault(&file.clone().tensor_at("u", &dims, 0, 128)), Fault::SizeOverflow { .. }), "{dims:?}");
    }
    let last = u64::MAX - 31;
    assert!(matches!(fault(&file.clone().tensor_at("u", &[32], 0, last)), Fault::SizeOverflow { .. }));
    // 2 rows of 16 make a whole block, but no row does.
    assert!(matches!(
        fault(&file.clone().tensor_at("u", &[16, 2], 8, 128)),
        Fault::PartialBlock { row: 16, block: 32 }
    ));
    assert!(matches!(open(&file.clone().tensor_at("u", &[33], 0, 128)), Err(ImportError::Truncated { .. })));
    let error = open(&file.clone().tensor_at("u", &[32], 6, 128)).unwrap_err();
    assert!(matches!(&error, ImportError::UnsupportedDtype { tensor, .. } if tensor == "u"));
    assert!(error.to_string().contains("Q5_0"), "{error}");
}

#[test]
fn empty_tensors_and_scalars_load() {
    let file = GgufWriter::default().tensor("empty", &[0, 3], 0, &[]).tensor("scalar", &[], 0, &2f32.to_le_bytes());
    let file = open(&file).unwrap();
    assert_eq!(file.load("empty").unwrap().shape().as_slice(), [3, 0]);
    assert_eq!(file.load("scalar").unwrap().try_to_vec_as::<f32>().unwrap(), [2.0]);
    assert!(matches!(file.load("other"), Err(ImportError::MissingTensor { .. })));
}

#[test]
fn messages_are_one_line() {
    let file = GgufWriter::default().u32("a\nb", 1).u32("a\nb", 1);
    assert_eq!(open(&file).unwrap_err().to_string().lines().count(), 1);
}
