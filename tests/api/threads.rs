//! What may cross threads. The compiler is the judge; the tests only make it look.

use std::time::Duration;

use podlock::operator::{EventFilter, Follow, Notices, Operator, PodFilter, RunFilter, WorkerFilter};
use podlock::{Config, NewRun, Pod, PodBuilder, Run, RunId, migrate, tokio_postgres};

fn crosses<T: Send + Sync>() {}

/// What `tokio::spawn` asks of a future, but for its lifetime.
fn is_send<T: Send>(_: T) {}

/// What `tokio::spawn` asks of a future.
fn can_be_spawned<T: Send + 'static>(_: T) {}

#[test]
fn every_public_type_is_send_and_sync() {
    crosses::<podlock::Alert>();
    crosses::<podlock::AlertKind>();
    crosses::<podlock::Attached>();
    crosses::<podlock::Cancelled>();
    crosses::<Config>();
    crosses::<podlock::Error>();
    crosses::<podlock::ErrorKind>();
    crosses::<podlock::Fence>();
    crosses::<podlock::HandlerError>();
    crosses::<podlock::Incarnation>();
    crosses::<podlock::LockKey>();
    crosses::<NewRun>();
    crosses::<podlock::OnDetach>();
    crosses::<podlock::OnStall>();
    crosses::<podlock::Outcome>();
    crosses::<podlock::Phase>();
    crosses::<Pod>();
    crosses::<podlock::PasswordRequest>();
    crosses::<PodBuilder>();
    crosses::<podlock::ProgressSource>();
    crosses::<podlock::PodEvent>();
    crosses::<podlock::PodId>();
    crosses::<podlock::PodStatus>();
    crosses::<Run>();
    crosses::<RunId>();
    crosses::<podlock::Settings>();
    crosses::<podlock::ShutdownReport>();
    crosses::<podlock::Started>();
    crosses::<podlock::StopCause>();
    crosses::<podlock::StopReason>();
    crosses::<podlock::StopSignal>();
    crosses::<podlock::Stopped>();
    crosses::<podlock::StreamEvent>();
    crosses::<podlock::StreamPosition>();
    crosses::<podlock::Timestamp>();
    crosses::<podlock::WorkerId>();
    crosses::<podlock::WorstCase>();
    crosses::<podlock::history::ProcessExit>();
    crosses::<podlock::meters::Kind>();
    crosses::<podlock::meters::Meter>();
    crosses::<podlock::workers::Available>();
    crosses::<podlock::workers::Filter>();
    crosses::<podlock::workers::Health>();
    crosses::<podlock::workers::HealthCheck>();
    crosses::<podlock::workers::Lease>();
    crosses::<podlock::workers::Liveness>();
    crosses::<podlock::workers::NewWorker>();
    crosses::<podlock::workers::Origin>();
    crosses::<podlock::workers::ProbeRequest>();
    crosses::<podlock::workers::Secret>();
    crosses::<podlock::workers::SpecFault>();
    crosses::<podlock::workers::Worker>();
    crosses::<podlock::workers::WorkerEvent>();
    crosses::<podlock::workers::WorkerSpec>();
    crosses::<podlock::workers::Workers>();
    crosses::<podlock::config::Keepalives>();
    crosses::<migrate::Access>();
    crosses::<migrate::Version>();
    crosses::<podlock::history::Counter>();
    crosses::<podlock::history::Gauge>();
    crosses::<podlock::history::Health>();
    crosses::<podlock::history::SampleCounts>();
    crosses::<podlock::operator::AttemptRow>();
    crosses::<EventFilter>();
    crosses::<podlock::operator::EventRow>();
    crosses::<Follow>();
    crosses::<podlock::operator::Kept>();
    crosses::<Notices>();
    crosses::<Operator>();
    crosses::<podlock::operator::Pruned>();
    crosses::<podlock::operator::RolledUp>();
    crosses::<podlock::operator::Retention>();
    crosses::<podlock::Output>();
    crosses::<podlock::OutputFormat>();
    crosses::<podlock::operator::PodDetail>();
    crosses::<PodFilter>();
    crosses::<podlock::operator::PodRow>();
    crosses::<podlock::operator::RunDetail>();
    crosses::<RunFilter>();
    crosses::<podlock::operator::RunOutput>();
    crosses::<podlock::operator::OwnerRow>();
    crosses::<podlock::operator::Released>();
    crosses::<podlock::operator::RunRow>();
    crosses::<podlock::operator::SessionRow>();
    crosses::<podlock::operator::ByShare>();
    crosses::<podlock::operator::Features>();
    crosses::<podlock::operator::LastEnd>();
    crosses::<podlock::operator::Liveness>();
    crosses::<podlock::operator::NetworkAvailability>();
    crosses::<podlock::operator::ReliabilityFilter>();
    crosses::<podlock::operator::ReliabilityRow>();
    crosses::<podlock::operator::Sample>();
    crosses::<WorkerFilter>();
    crosses::<podlock::operator::WorkerRow>();
    crosses::<podlock::http::AdminKey>();
    crosses::<podlock::operator::BacklogRow>();
    crosses::<podlock::meters::Label>();
    crosses::<podlock::http::Limits>();
    crosses::<podlock::http::Serve>();
    crosses::<podlock::http::Webhook>();
    crosses::<podlock::throwaway::Builder>();
    crosses::<podlock::throwaway::Server>();
    crosses::<podlock::throwaway::ThrowawayError>();
}

/// Whatever the call borrows, its future may be awaited in a task of a runtime with many threads. Compiled, never run.
#[expect(dead_code, reason = "it is enough that it compiles")]
fn every_public_future_is_send(
    (builder, serve): (PodBuilder, podlock::http::Serve),
    pod: &Pod,
    txn: &tokio_postgres::Transaction<'_>,
    run: &Run,
    operator: &Operator,
    (follow, notices, attached): (&mut Follow, &mut Notices, &mut podlock::Attached),
    (config, run_id, keep): (&Config, RunId, &podlock::operator::Retention),
) {
    let new = || NewRun::new("kind");
    is_send(PodBuilder::start(builder));
    is_send(Pod::start(pod, new()));
    is_send(Pod::submit(pod, new()));
    is_send(Pod::start_in_txn(pod, txn, new()));
    is_send(Pod::submit_in_txn(pod, txn, new()));
    is_send(Pod::start_many(pod, [new()]));
    is_send(Pod::submit_many(pod, [new()]));
    is_send(Pod::start_many_in_txn(pod, txn, &[]));
    is_send(Pod::submit_many_in_txn(pod, txn, &[]));
    is_send(Pod::cancel(pod, run_id));
    is_send(Pod::drain_requested(pod));
    is_send(Pod::over(pod, pod.incarnation()));
    is_send(Pod::note_exit(pod, podlock::history::ProcessExit::code(0)));
    is_send(Pod::closed(pod));
    can_be_spawned(Pod::status_changes(pod));
    can_be_spawned(Pod::shutdown(pod.clone(), Duration::ZERO));
    can_be_spawned(Pod::until_stopped(pod.clone(), Duration::ZERO));
    is_send(Run::stopped(run));
    is_send(Run::checkpoint(run, 1));
    is_send(Run::append(run, ""));
    is_send(Run::append_with_checkpoint(run, "", 1));
    is_send(Run::flush(run));
    is_send(Run::restart_stream(run));
    is_send(Run::continue_from(run, 0));
    is_send(Pod::attach(pod, run_id));
    is_send(Pod::attach_key(pod, "kind", "key"));
    is_send(Pod::attach_after(pod, run_id, podlock::StreamPosition::START));
    is_send(podlock::Attached::next(attached));
    is_send(Run::finish(run, podlock::Output::text("")));
    is_send(Run::guard(run, txn));
    is_send(Operator::connect(config));
    is_send(Operator::pods(operator, PodFilter::new()));
    is_send(Operator::pod(operator, "name"));
    is_send(Operator::runs(operator, RunFilter::new()));
    is_send(Operator::run(operator, run_id));
    is_send(Operator::incarnation(operator, pod.incarnation()));
    is_send(Operator::roll_up(operator));
    is_send(Operator::workers(operator, WorkerFilter::new()));
    is_send(Operator::backlog(operator));
    is_send(Operator::record_backlog(operator, &mut std::collections::BTreeSet::new()));
    is_send(Operator::worker(operator, podlock::WorkerId::of(pod.pod_id(), "http://a")));
    is_send(Operator::reliability(operator, podlock::operator::ReliabilityFilter::new()));
    is_send(Operator::reliability_of(operator, "name"));
    is_send(Operator::liveness(operator, "name"));
    is_send(Operator::knows_pod(operator, "name"));
    is_send(Operator::pod_sessions(operator, "name", 1, None));
    is_send(Operator::heartbeats(operator, "name", None, None, 1));
    is_send(Operator::availability(operator));
    is_send(Operator::latest(operator, "kind", "key"));
    is_send(Operator::cancel(operator, run_id));
    is_send(Operator::restart(operator, run_id));
    is_send(Operator::prune(operator, keep));
    is_send(Operator::prunable(operator, keep));
    is_send(Operator::release(operator, run_id));
    is_send(Operator::events(operator, EventFilter::new()));
    is_send(Operator::follow(operator, EventFilter::new()));
    is_send(Operator::notices(operator));
    is_send(Operator::drain(operator, "name"));
    is_send(Operator::cordon(operator, "name"));
    is_send(Operator::uncordon(operator, "name"));
    is_send(Operator::evict(operator, "name"));
    is_send(Operator::drop_schema(operator, "schema"));
    is_send(Follow::next(follow));
    is_send(Notices::next(notices));
    is_send(podlock::workers::Workers::ready(&pod.workers()));
    is_send(podlock::workers::Workers::published(&pod.workers(), Duration::ZERO));
    is_send(podlock::connect(config));
    is_send(migrate::up(config));
    is_send(migrate::status(config));
    is_send(migrate::warnings(config));
    can_be_spawned(podlock::http::Serve::until(serve, std::future::pending(), Duration::ZERO));
    is_send(podlock::http::sse_run(pod, run_id, &axum::http::HeaderMap::new()));
    is_send(podlock::http::not_found(axum::http::Method::GET, axum::http::Uri::from_static("/")));
}
