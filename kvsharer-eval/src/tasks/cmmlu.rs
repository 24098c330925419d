//! CMMLU (Li et al., arXiv 2306.09212): Chinese exam questions of 67 subjects, four choices.
//!
//! Sources: lm-eval `cmmlu`, OpenCompass `cmmlu_ppl_8b9c76` (5 examples of the subject, from `dev/`).

use super::mmlu::{dev_beside, options};
use super::prompt::{LETTERS, ROUNDS_JOINT, letter_choices};
use super::python::strip;
use super::read::{Reader, Rows, bad, csv, files, part_of};
use super::{Entry, Fault, Item, Row, Rules, TaskError};
use std::path::Path;

pub(super) const ENTRY: Entry = Entry {
    name: "cmmlu",
    summary: "Chinese exams of 67 subjects, 4 choices",
    files: "the folder with test/SUBJECT.csv, or one such file (number, Question, A, B, C, D, Answer)",
    lm_eval: Some(Rules::new("cmmlu", &["acc", "acc_norm"], lm_eval)),
    opencompass: Some(Rules { shots: 5, ..Rules::new("cmmlu_ppl_8b9c76", &["acc"], opencompass) }),
    reader: Reader {
        files: |path| files(&part_of(path, "test"), ".csv"),
        dev: |path| dev_beside(path, str::to_owned),
        ..Reader::file(rows)
    },
};

/// The records below the header.
fn rows(path: &Path) -> Result<Rows, TaskError> {
    let subject = path.file_stem().unwrap_or_default().to_string_lossy();
    let named = |row: Row| Row { subset: Some(subject.clone().into_owned()), ..row };
    let mut rows =
        csv(path, &["number", "Question", "A", "B", "C", "D", "Answer"])?.into_iter().map(|row| row.map(named));
    match rows.next() {
        // Without a header the first question would be lost.
        Some(Ok(row)) if row.text("Question") != Ok("Question") => {
            let fault = Fault::Csv("no header `,Question,A,B,C,D,Answer`".into());
            let first = Err(bad(&row.place, fault));
            Ok([first, Ok(row)].into_iter().chain(rows).collect())
        }
        Some(Err(error)) => Ok([Err(error)].into_iter().chain(rows).collect()),
        _ => Ok(rows.collect()),
    }
}

fn lm_eval(row: &Row) -> Result<Option<Item>, Fault> {
    let letters = &LETTERS[..4];
    let context = format!("{}\n{}\n答案：", strip(row.filled("Question")?), options(row)?);
    let item = Item::choices(&row.place, letter_choices(&context, letters), row.label("Answer", letters)?);
    Ok(Some(Item { head: format!("{}\n\n", head(row)?), ..item }))
}

fn opencompass(row: &Row) -> Result<Option<Item>, Fault> {
    let letters = &LETTERS[..4];
    let asked = format!("{}\n题目：{}\n{}", head(row)?, row.filled("Question")?, options(row)?);
    let prompts = letters.iter().map(|letter| format!("{asked}\n答案是: {letter}")).collect();
    Ok(Some(Item::prompts(&row.place, prompts, row.label("Answer", letters)?).shown_with(ROUNDS_JOINT)))
}

fn head(row: &Row) -> Result<String, Fault> {
    let subject = row.subset.as_deref().unwrap_or_default();
    let name = SUBJECTS.iter().find_map(|&(english, chinese)| (english == subject).then_some(chinese));
    let name =
        name.ok_or_else(|| Fault::Broken(format!("`{subject}`, the name of the file, is no subject of CMMLU")))?;
    Ok(format!("以下是关于{name}的单项选择题，请直接给出正确答案的选项。"))
}

/// The subjects' names in the prompts, the same in both harnesses.
const SUBJECTS: &[(&str, &str)] = &[
    ("agronomy", "农学"),
    ("anatomy", "解剖学"),
    ("ancient_chinese", "古汉语"),
    ("arts", "艺术学"),
    ("astronomy", "天文学"),
    ("business_ethics", "商业伦理"),
    ("chinese_civil_service_exam", "中国公务员考试"),
    ("chinese_driving_rule", "中国驾驶规则"),
    ("chinese_food_culture", "中国饮食文化"),
    ("chinese_foreign_policy", "中国外交政策"),
    ("chinese_history", "中国历史"),
    ("chinese_literature", "中国文学"),
    ("chinese_teacher_qualification", "中国教师资格"),
    ("clinical_knowledge", "临床知识"),
    ("college_actuarial_science", "大学精算学"),
    ("college_education", "大学教育学"),
    ("college_engineering_hydrology", "大学工程水文学"),
    ("college_law", "大学法律"),
    ("college_mathematics", "大学数学"),
    ("college_medical_statistics", "大学医学统计"),
    ("college_medicine", "大学医学"),
    ("computer_science", "计算机科学"),
    ("computer_security", "计算机安全"),
    ("conceptual_physics", "概念物理学"),
    ("construction_project_management", "建设工程管理"),
    ("economics", "经济学"),
    ("education", "教育学"),
    ("electrical_engineering", "电气工程"),
    ("elementary_chinese", "小学语文"),
    ("elementary_commonsense", "小学常识"),
    ("elementary_information_and_technology", "小学信息技术"),
    ("elementary_mathematics", "初等数学"),
    ("ethnology", "民族学"),
    ("food_science", "食品科学"),
    ("genetics", "遗传学"),
    ("global_facts", "全球事实"),
    ("high_school_biology", "高中生物"),
    ("high_school_chemistry", "高中化学"),
    ("high_school_geography", "高中地理"),
    ("high_school_mathematics", "高中数学"),
    ("high_school_physics", "高中物理学"),
    ("high_school_politics", "高中政治"),
    ("human_sexuality", "人类性行为"),
    ("international_law", "国际法学"),
    ("journalism", "新闻学"),
    ("jurisprudence", "法理学"),
    ("legal_and_moral_basis", "法律与道德基础"),
    ("logical", "逻辑学"),
    ("machine_learning", "机器学习"),
    ("management", "管理学"),
    ("marketing", "市场营销"),
    ("marxist_theory", "马克思主义理论"),
    ("modern_chinese", "现代汉语"),
    ("nutrition", "营养学"),
    ("philosophy", "哲学"),
    ("professional_accounting", "专业会计"),
    ("professional_law", "专业法学"),
    ("professional_medicine", "专业医学"),
    ("professional_psychology", "专业心理学"),
    ("public_relations", "公共关系"),
    ("security_study", "安全研究"),
    ("sociology", "社会学"),
    ("sports_science", "体育学"),
    ("traditional_chinese_medicine", "中医中药"),
    ("virology", "病毒学"),
    ("world_history", "世界历史"),
    ("world_religions", "世界宗教"),
];
