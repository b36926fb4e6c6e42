use serde_json::json;

use super::*;

fn changed(name: &str, settings: Value) -> Result<Select, Error> {
    let Value::Object(settings) = settings else { panic!("an object") };
    Select::configured(name, settings)
}

fn refused(name: &str, settings: Value) -> String {
    changed(name, settings).unwrap_err().to_string()
}

#[test]
fn a_typing_error_gets_the_nearest_name() {
    let text = Select::parse("boxd").unwrap_err().to_string();
    let start = "unknown selector \"boxd\", did you mean \"boxed\"?; there are: full, boxed, duoattention, streaming, quest";
    assert!(text.starts_with(start), "{text}");
    assert!(!Select::parse("somethingelse").unwrap_err().to_string().contains("did you mean"));
}

#[test]
fn every_preset_parses_and_is_valid_and_goes_through_json() {
    for p in selection_presets() {
        let select = Select::parse(p.name).unwrap();
        assert_eq!(select.name(), p.name);
        select.validate().unwrap();
        let text = serde_json::to_string(&select).unwrap();
        assert_eq!(serde_json::from_str::<Select>(&text).unwrap(), select);
        assert_eq!(Select::configured(p.name, select.settings()).unwrap(), select);
        for budget in [1024, 4096, 16384] {
            let set = select.clone().with_budget(budget);
            set.validate().unwrap();
            assert!(set.budget().is_none_or(|tokens| tokens == budget), "{set:?}");
        }
    }
}

#[test]
fn settings_are_changed_by_name() {
    assert_eq!(Select::parse("twilight").unwrap().settings()["top_p"], json!(0.85));
    let quest = changed("quest", json!({ "budget": 512 })).unwrap();
    assert_eq!(quest, Select::Quest(Quest { budget: 512, ..Quest::default() }));
    let tokens = changed("tokenselect", json!({ "theta": null, "sinks": 4 })).unwrap();
    let want = TokenSelect { theta: None, sinks: 4, ..TokenSelect::default() };
    assert_eq!(tokens, Select::TokenSelect(want));
    assert_eq!(
        refused("quest", json!({ "budgett": 512 })),
        "quest: unknown setting \"budgett\", did you mean \"budget\"?; there are: budget, unit_tokens"
    );
    let text = refused("quest", json!({ "budget": "many" }));
    assert!(text.starts_with("quest: budget: ") && text.contains("usize"), "{text}");
    assert!(refused("quest", json!({ "budget": -1 })).starts_with("quest: budget: "));
    assert!(refused("streaming", json!({ "sinks": 0, "recent": 0 })).contains("recent"));
}

#[test]
fn settings_out_of_range_are_named() {
    let bad = |b: Boxed| Select::Boxed(b).validate().unwrap_err().to_string();
    assert_eq!(
        bad(Boxed { planes: 5, ..Boxed::default() }),
        "boxed: planes must be 2, 3 or 4, found 5"
    );
    assert_eq!(
        bad(Boxed::with_budget(80)),
        "boxed: budget must be above sinks + recent (at least 63) = 80, found 80"
    );
    let both = Boxed { reuse: Some(0.9), ..Boxed::with_max_missed_mass(0.1) };
    assert_eq!(bad(both), "boxed: reuse must be none with max_missed_mass, found both");
    assert!(bad(Boxed { reuse: Some(1.0), ..Boxed::default() }).contains("reuse must be above 0"));
    assert!(bad(Boxed { reuse_steps: 0, ..Boxed::default() }).contains("reuse_steps"));
    assert!(bad(Boxed { residency: f32::NAN, ..Boxed::default() }).contains("residency"));
    for share in [0.0, 1.0, -0.5, f32::NAN, f32::INFINITY] {
        assert!(bad(Boxed::with_max_missed_mass(share)).contains("max_missed_mass"));
    }
    let proven = Boxed { recent: 0, ..Boxed::with_max_missed_mass(0.1) };
    assert_eq!(
        bad(Boxed { max_tokens: Some(78), ..proven.clone() }),
        "boxed: max_tokens must be at least the tokens read anyway, 79, found 78"
    );
    assert!(Select::Boxed(Boxed { max_tokens: Some(79), ..proven }).validate().is_ok());
    assert_eq!(
        refused("quest", json!({ "budget": 31 })),
        "quest: budget must be at least 32: what is kept, 16, and a unit of 16, found 31"
    );
    assert!(refused("quest", json!({ "unit_tokens": 24 })).contains("a divisor of 64"));
    assert!(refused("quest", json!({ "unit_tokens": 0 })).contains("a divisor of 64"));
    assert!(refused("tokenselect", json!({ "budget": 640 })).contains("at least 641"));
    assert!(refused("tokenselect", json!({ "theta": 1.5 })).contains("theta"));
    assert!(refused("twilight", json!({ "top_p": 1.0 })).contains("top_p"));
    assert!(refused("snapkv", json!({ "pool": 4 })).contains("odd"));
    assert!(refused("snapkv", json!({ "window": 0 })).contains("window"));
    assert!(refused("tidaldecode", json!({ "anchors": [5, 2] })).contains("ascending"));
    assert!(refused("hshare", json!({ "steps": 0 })).contains("steps"));
    assert!(refused("hshare", json!({ "heads": 1.5 })).contains("heads"));
    assert!(refused("hshare", json!({ "layers": -0.5 })).contains("layers"));
    assert!(refused("leoam", json!({ "flat": 0.0 })).contains("flat"));
    assert!(refused("leoam", json!({ "queries": 0 })).contains("queries"));
    assert!(refused("nsa", json!({ "unit_tokens": 0 })).contains("unit_tokens"));
    assert!(refused("clusterkv", json!({ "cluster_tokens": 0 })).contains("cluster_tokens"));
    assert!(refused("clusterkv", json!({ "window": 0 })).contains("window"));
    assert!(refused("clusterkv", json!({ "budget": 20 })).contains("at least 22"));
    assert!(refused("retroinfer", json!({ "estimated": 1.5 })).contains("estimated"));
    assert!(refused("retroinfer", json!({ "retrieved": 0 })).contains("above 0"));
    assert!(refused("pqcache", json!({ "bits": 9 })).contains("from 1 to 8"));
    assert!(refused("pqcache", json!({ "recent_share": 1 })).contains("recent_share"));
    assert!(refused("shadowkv", json!({ "unit_tokens": 7 })).contains("a divisor of 64"));
    assert!(refused("infllm", json!({ "representatives": 129 })).contains("representatives"));
    assert!(refused("infllm", json!({ "recent": 64 })).contains("recent"));
    assert!(refused("infinigen", json!({ "channels": 0 })).contains("channels"));
    assert!(refused("infinigen", json!({ "alpha": -1 })).contains("alpha"));
    for name in ["quest", "arkvale", "tokenselect", "twilight", "snapkv", "nsa", "dsa"] {
        assert!(refused(name, json!({ "budget": 0 })).contains("budget"), "{name}");
    }
}
