//! Settings by name, as users write them.

use serde_json::{Map, Value};

use crate::Error;

/// Changes settings one by one; `parse` tells whether all of them are of the right types.
///
/// # Errors
/// [`Error::UnknownSetting`] with the nearest setting, [`Error::SettingType`] for a value of the wrong type.
pub(crate) fn change(
    selector: &'static str,
    all: &mut Map<String, Value>,
    settings: Map<String, Value>,
    parse: impl Fn(&Map<String, Value>) -> Result<(), serde_json::Error>,
) -> Result<(), Error> {
    for (key, value) in settings {
        let Some(old) = all.get_mut(&key) else {
            let known: Vec<&str> = all.keys().map(String::as_str).collect();
            return Err(Error::UnknownSetting {
                selector,
                suggestion: nearest(&key, known.iter().copied()).map(str::to_owned),
                known: list(known.into_iter()),
                setting: key,
            });
        };
        let found = value.to_string();
        *old = value;
        parse(all).map_err(|problem| Error::SettingType {
            selector,
            setting: key,
            problem: problem.to_string(),
            found,
        })?;
    }
    Ok(())
}

/// The settings in what something is as JSON: without its name, single-precision numbers as they are
/// written (0.85, not 0.8500000238418579).
pub(crate) fn of(object: serde_json::Result<Value>) -> Map<String, Value> {
    let Ok(Value::Object(mut object)) = object else { return Map::new() };
    object.remove("name");
    for value in object.values_mut() {
        let Some(wide) = value.as_f64().filter(|_| value.is_f64()) else { continue };
        let short = (wide as f32).to_string().parse::<f64>();
        if let Some(short) = short.ok().filter(|short| *short as f32 == wide as f32) {
            *value = short.into();
        }
    }
    object
}

/// Names with commas between them.
pub(crate) fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

/// The known name nearest to `name`, if one is near enough to be a likely typing error.
#[must_use]
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase();
    let best = known.map(|k| (strsim::damerau_levenshtein(&name, k), k)).min()?;
    (best.0 <= 1 + best.1.len() / 3).then_some(best.1)
}
