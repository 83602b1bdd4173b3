//! A service whose runs are traced across pods by OpenTelemetry: all attempts of a run bear one trace id.
//!
//! ```sh
//! export DATABASE_URL=postgres://app@localhost/app
//! export OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318    # a collector; without it, spans are printed on stdout
//! POD_NAME=a cargo run --example traces -- 100 &              # starts a run of 100 steps
//! POD_NAME=b cargo run --example traces                       # kill -9 the first: this one goes on in the same trace
//! ```

use std::collections::HashMap;
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
use podlock::{Config, HandlerError, NewRun, Outcome, Pod, Run};
use serde_json::json;
use tracing::Instrument as _;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

const GRACE: Duration = Duration::from_secs(20);

#[tokio::main]
async fn main() -> Result<(), HandlerError> {
    let provider = provider()?;
    let traced = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("traces"))
        .with_filter(tracing_subscriber::filter::LevelFilter::INFO);
    let logged = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_filter(tracing_subscriber::filter::LevelFilter::INFO);
    tracing_subscriber::registry().with(traced).with(logged).init();

    let pod = Pod::builder(Config::from_env()?)
        .handler("steps", steps)
        // Before the span is entered: OpenTelemetry takes no other parent afterwards.
        .on_attempt(|traceparent, span| {
            if let Err(e) = span.set_parent(parent_of(traceparent)) {
                tracing::warn!("the attempt begins a trace of its own: {e}");
            }
        })
        .stop_on_signals()
        .start()
        .await?;
    if let Some(steps) = std::env::args().nth(1) {
        // A caller that has a trace passes it on with `.traceparent(…)`. Without one, the run begins a trace.
        let run = pod.start(NewRun::new("steps").input(json!(steps.parse::<u64>()?))).await?;
        tracing::info!(run = %run.run_id, "started");
    }
    pod.until_stopped(GRACE).await?;
    // What is not exported yet would be lost. It may wait for the collector, so not on a thread of the runtime.
    tokio::task::spawn_blocking(move || provider.shutdown()).await??;
    Ok(())
}

/// One attempt. podlock has opened the span `podlock::run` around it, so each span and event in here is in the run's trace.
async fn steps(run: Run) -> Result<Outcome, HandlerError> {
    let steps = run.input().as_u64().unwrap_or(0);
    for step in run.saved().and_then(|saved| saved.as_u64()).unwrap_or(0)..steps {
        async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            // A call of another service passes the current span's context on, as its client's instrumentation does.
            run.checkpoint(step + 1).await
        }
        .instrument(tracing::info_span!("step", step))
        .await?;
    }
    Ok(Outcome::Done(json!(steps)))
}

fn parent_of(traceparent: &str) -> Context {
    TraceContextPropagator::new().extract(&HashMap::from([("traceparent".to_owned(), traceparent.to_owned())]))
}

/// Exports to a collector, or prints.
fn provider() -> Result<SdkTracerProvider, HandlerError> {
    let builder = SdkTracerProvider::builder();
    if std::env::var_os("OTEL_EXPORTER_OTLP_ENDPOINT").is_none() {
        return Ok(builder.with_simple_exporter(Printed).build());
    }
    let exporter = opentelemetry_otlp::SpanExporter::builder().with_http().build()?;
    Ok(builder.with_batch_exporter(exporter).build())
}

/// Prints each span that has ended as a line.
#[derive(Debug)]
struct Printed;

impl SpanExporter for Printed {
    async fn export(&self, spans: Vec<SpanData>) -> OTelSdkResult {
        for span in spans {
            let attributes: HashMap<_, _> =
                span.attributes.iter().map(|of| (of.key.as_str(), of.value.as_str().into_owned())).collect();
            let line = json!({
                "name": span.name,
                "trace_id": span.span_context.trace_id().to_string(),
                "span_id": span.span_context.span_id().to_string(),
                "parent_id": span.parent_span_id.to_string(),
                "attributes": attributes,
            });
            println!("{line}");
        }
        Ok(())
    }
}
