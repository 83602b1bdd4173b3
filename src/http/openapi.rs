//! The OpenAPI document of the liveness history. Its parameters come from the table by which requests are checked, and its
//! replies from the types that are sent.

use std::sync::OnceLock;

use serde_json::Value;
use utoipa::openapi::path::{HttpMethod, Operation, OperationBuilder, Parameter as Described, ParameterBuilder};
use utoipa::openapi::path::{ParameterIn, PathItem};
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, Schema, SchemaFormat, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    ComponentsBuilder, ContentBuilder, InfoBuilder, OpenApi, OpenApiBuilder, PathsBuilder, Ref, RefOr, Required,
    Response, ResponseBuilder, ResponsesBuilder,
};
use utoipa::{PartialSchema, ToSchema};

use crate::http::liveness::{self, NAME_MAX, Reliability, Samples, Sessions};
use crate::http::parameters::{Kind, Parameter};
use crate::id::Incarnation;
use crate::operator::{Liveness, NetworkAvailability};
use crate::timestamp::Timestamp;

/// The name of the key in the document.
const KEY: &str = "admin_key";

/// A refusal.
#[derive(ToSchema)]
#[schema(as = Problem)]
#[expect(dead_code, reason = "only its schema is used; `http::problem` makes the body")]
struct Refusal {
    /// What was wrong, in words.
    error: String,
    /// A stable word for it.
    kind: String,
    /// The parameter that was wrong.
    #[schema(nullable = false)]
    field: Option<String>,
}

impl PartialSchema for Timestamp {
    fn schema() -> RefOr<Schema> {
        let text = ObjectBuilder::new().schema_type(Type::String);
        text.format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
            .description(Some("A point in time, by RFC 3339 in UTC."))
            .into()
    }
}

impl ToSchema for Timestamp {}

impl PartialSchema for Incarnation {
    fn schema() -> RefOr<Schema> {
        let text = ObjectBuilder::new().schema_type(Type::String);
        text.format(Some(SchemaFormat::Custom("uuid".to_owned())))
            .description(Some("One registration of a pod."))
            .into()
    }
}

impl ToSchema for Incarnation {}

/// A route as the document shows it.
struct Route {
    path: &'static str,
    id: &'static str,
    summary: &'static str,
    parameters: &'static [Parameter],
    reply: RefOr<Schema>,
}

fn routes() -> [Route; 5] {
    let of_path =
        |path, id, summary, parameters, reply: Ref| Route { path, id, summary, parameters, reply: reply.into() };
    [
        of_path(liveness::LIVENESS, "liveness", "What is known of a pod now", liveness::NONE, named::<Liveness>()),
        of_path(liveness::SESSIONS, "sessions", "The sessions of a pod", liveness::OF_SESSIONS, named::<Sessions>()),
        of_path(liveness::SAMPLES, "heartbeats", "The samples of a pod", liveness::OF_SAMPLES, named::<Samples>()),
        of_path(
            liveness::RELIABILITY,
            "reliability",
            "How reliable the pods are",
            liveness::OF_RELIABILITY,
            named::<Reliability>(),
        ),
        of_path(
            liveness::AVAILABILITY,
            "availability",
            "How available the whole fleet was",
            liveness::NONE,
            named::<NetworkAvailability>(),
        ),
    ]
}

/// The whole document. It is made once.
pub(super) fn document() -> &'static Value {
    static DOCUMENT: OnceLock<Value> = OnceLock::new();
    DOCUMENT.get_or_init(|| {
        // What is made of strings, numbers and lists only cannot fail to be JSON.
        let mut document = serde_json::to_value(made()).unwrap_or_default();
        translate(&mut document);
        require_all(&mut document);
        document
    })
}

/// The texts of the types are written for readers of Rust: links become names, and `None` is `null` in JSON.
fn translate(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(text) if name == "description" => {
                        *text = text.replace("[`", "`").replace("`]", "`").replace("`None`", "`null`");
                    }
                    value => translate(value),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(translate),
        _ => {}
    }
}

/// The replies have all of their fields always, `null` or not. utoipa takes an `Option` for one that may be missing, as
/// it may in a refusal.
fn require_all(document: &mut Value) {
    let Some(schemas) = document.pointer_mut("/components/schemas").and_then(Value::as_object_mut) else { return };
    for (_, schema) in schemas.iter_mut().filter(|(name, _)| *name != "Problem") {
        require_all_of(schema);
    }
}

fn require_all_of(schema: &mut Value) {
    if let Some(parts) = schema.get_mut("allOf").and_then(Value::as_array_mut) {
        parts.iter_mut().for_each(require_all_of);
    }
    let names = schema.get("properties").and_then(Value::as_object).map(|fields| fields.keys().cloned().collect());
    if let Some(names) = names.map(|names: Vec<String>| Value::from(names)) {
        schema["required"] = names;
    }
}

fn made() -> OpenApi {
    let info = InfoBuilder::new()
        .title("podlock: the liveness history")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some("Which pods can be trusted with long runs, and how pods lived and ended."));
    let mut paths = PathsBuilder::new();
    for route in routes() {
        paths = paths.path(route.path, PathItem::new(HttpMethod::Get, route.operation()));
    }
    paths = paths.path(liveness::DOCUMENT, PathItem::new(HttpMethod::Get, of_itself()));
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer);
    let bearer = bearer.description(Some("The admin key: PODLOCK_ADMIN_KEY, or a line of its file.")).build();
    let components = ComponentsBuilder::new()
        .schemas_from_iter(schemas())
        .security_scheme(KEY, SecurityScheme::Http(bearer))
        .build();
    OpenApiBuilder::new().info(info.build()).paths(paths.build()).components(Some(components)).build()
}

impl Route {
    fn operation(self) -> Operation {
        let of_a_pod = self.path.contains("{id}");
        let mut operation = OperationBuilder::new()
            .operation_id(Some(self.id))
            .summary(Some(self.summary))
            .security(SecurityRequirement::new(KEY, Vec::<String>::new()));
        if of_a_pod {
            operation = operation.parameter(pod());
        }
        for parameter in self.parameters {
            operation = operation.parameter(described(parameter));
        }
        let mut responses = ResponsesBuilder::new()
            .response("200", json("The answer", self.reply))
            .response("400", refusal("A parameter is wrong: `field` names it"))
            .response("401", refusal("The admin key is missing or wrong"))
            .response("403", refusal("No admin key is set, so this is refused to everybody"))
            .response("405", refusal("Only GET and HEAD are answered"))
            .response("500", refusal("The database refused something that it should not have"))
            .response("503", refusal("It cannot be answered now; `Retry-After` says when to try again"));
        if of_a_pod {
            responses = responses.response("404", refusal("Nothing is known of this pod"));
        }
        operation.responses(responses.build()).build()
    }
}

/// The document's own route, which needs no key: it names no data.
fn of_itself() -> Operation {
    let any = ObjectBuilder::new().schema_type(Type::Object).build();
    let responses = ResponsesBuilder::new()
        .response("200", json("This document", Schema::Object(any).into()))
        .response("405", refusal("Only GET and HEAD are answered"));
    OperationBuilder::new()
        .operation_id(Some("openapi"))
        .summary(Some("This document"))
        .responses(responses.build())
        .build()
}

/// The name of a pod, in the path.
fn pod() -> Described {
    let name = ObjectBuilder::new()
        .schema_type(Type::String)
        .min_length(Some(1))
        .max_length(Some(NAME_MAX))
        // A NUL, which no text of the database can have.
        .pattern(Some("^[^\\u0000]+$"));
    ParameterBuilder::new()
        .name("id")
        .parameter_in(ParameterIn::Path)
        .required(Required::True)
        .description(Some("The name of the pod, percent-encoded."))
        .schema(Some(name.build()))
        .build()
}

fn described(parameter: &Parameter) -> Described {
    let schema = match parameter.kind {
        Kind::Bound { most } => ObjectBuilder::new()
            .schema_type(Type::Number)
            .minimum(Some(0.0))
            .maximum(Some(most))
            .default(Some(0.into())),
        Kind::Limit { usual, most } => ObjectBuilder::new()
            .schema_type(Type::Integer)
            .minimum(Some(1))
            .maximum(Some(most as f64))
            .default(Some(usual.into())),
        Kind::Time => ObjectBuilder::new()
            .schema_type(Type::String)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime))),
    };
    ParameterBuilder::new()
        .name(parameter.name)
        .parameter_in(ParameterIn::Query)
        .required(Required::False)
        .description(Some(parameter.text))
        .schema(Some(schema.build()))
        .build()
}

fn json(text: &str, schema: RefOr<Schema>) -> Response {
    let content = ContentBuilder::new().schema(Some(schema)).build();
    ResponseBuilder::new().description(text).content("application/json", content).build()
}

fn refusal(text: &str) -> Response {
    json(text, named::<Refusal>().into())
}

fn named<T: ToSchema>() -> Ref {
    Ref::from_schema_name(T::name())
}

/// The schemas of all replies, and of what they contain.
fn schemas() -> Vec<(String, RefOr<Schema>)> {
    fn add<T: ToSchema>(all: &mut Vec<(String, RefOr<Schema>)>) {
        all.push((T::name().into_owned(), T::schema()));
        T::schemas(all);
    }
    let mut all = Vec::new();
    add::<Liveness>(&mut all);
    add::<Sessions>(&mut all);
    add::<Samples>(&mut all);
    add::<Reliability>(&mut all);
    add::<NetworkAvailability>(&mut all);
    add::<Refusal>(&mut all);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_route_of_the_router_is_in_the_document_and_no_other() {
        let mut routes: Vec<_> = liveness::paths();
        routes.push(liveness::DOCUMENT);
        routes.sort_unstable();
        let paths: Vec<_> = document()["paths"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(paths, routes);
        assert_eq!(document()["info"]["version"], env!("CARGO_PKG_VERSION"));
    }

    #[test]
    fn each_reference_leads_somewhere_and_each_text_is_of_json() {
        let text = document().to_string();
        for rest in text.split("\"#/components/schemas/").skip(1) {
            let name = rest.split('"').next().unwrap();
            assert!(document()["components"]["schemas"].get(name).is_some(), "{name}");
        }
        assert!(!text.contains("[`") && !text.contains("`None`"), "{text}");
        let liveness = &document()["components"]["schemas"]["Liveness"];
        assert!(liveness.to_string().contains("\"required\":[\"cordoned_by\""), "{liveness}");
    }

    #[test]
    fn parameters_have_their_bounds() {
        let of = |path: &str, name: &str| {
            let parameters = document()["paths"][path]["get"]["parameters"].as_array().unwrap();
            parameters.iter().find(|p| p["name"] == name).unwrap()["schema"].clone()
        };
        let limit = of(liveness::SESSIONS, "limit");
        assert_eq!((limit["minimum"].as_f64(), limit["maximum"].as_f64()), (Some(1.0), Some(1000.0)), "{limit}");
        let uptime = of(liveness::RELIABILITY, "min_uptime");
        assert_eq!((uptime["minimum"].as_f64(), uptime["maximum"].as_f64()), (Some(0.0), Some(100.0)), "{uptime}");
        assert_eq!(of(liveness::SAMPLES, "since")["format"], "date-time");
    }
}
