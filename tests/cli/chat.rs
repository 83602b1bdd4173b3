//! `examples/chat`, run as its head says: the user's browser is a client that does what `page.html` does.

use std::process::Stdio;

use serde_json::Value;

use crate::harness::{Lines, SOON, TEST, clean, example, wait_for, within};
use crate::sse::{Event, Reader};

#[test]
fn the_example_shows_one_whole_answer_although_the_pod_that_answers_is_killed() {
    let program = within(10 * TEST, example("chat"));
    within(TEST, async {
        let mut command = clean(&program);
        command.arg("127.0.0.1:0").stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let (out, log) = (Lines::read(child.stdout.take().unwrap()), Lines::read(child.stderr.take().unwrap()));
        let url = out.find("its address", |line| line.strip_prefix("chat: ").map(str::to_owned)).await;
        let client = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().unwrap();
        wait_for("all three pods may bury", || async {
            let settled = log.all().iter().filter(|line| line.contains("registered")).count();
            if settled == 3 { Ok(()) } else { Err(format!("{settled} pods")) }
        })
        .await;
        tokio::time::sleep(std::time::Duration::from_secs(4)).await;
        let page = client.get(&url).send().await.unwrap().text().await.unwrap();
        assert!(page.contains("new EventSource("), "{page}");

        let question = "Shall I see all of it?";
        let asked = client.post(format!("{url}/ask")).body(question).send().await.unwrap();
        let run = asked.json::<Value>().await.unwrap()["run_id"].as_str().unwrap().to_owned();
        let mut reader = Reader::attach(&url, &run, None).await;
        let mut events = reader.some(10).await;
        let owner = client.get(format!("{url}/v1/runs/{run}")).send().await.unwrap().json::<Value>().await.unwrap();
        let owner = owner["owner_pod"].as_str().unwrap().to_owned();
        // Whoever is asked may be the one that is killed.
        let _ = client.post(format!("{url}/kill/{owner}")).send().await;
        loop {
            match reader.next().await {
                Some(event) => events.push(event),
                None if events.last().is_some_and(|e| e.name == "end") => break,
                None => reader = come_back(&url, &run, &events.last().unwrap().id).await,
            }
        }
        assert_eq!(events.iter().filter(|e| e.name == "reset").count(), 1, "{events:?}");
        let whole = whole(&events);
        assert!(whole.starts_with(&format!("You ask: {question} Let me think.")), "{whole}");
        assert!(whole.ends_with("That is the whole of my answer."), "{whole}");
        let run = client.get(format!("{url}/v1/runs/{run}")).send().await.unwrap().json::<Value>().await.unwrap();
        assert_eq!((run["attempt"].as_i64(), run["output"]["result"].as_str()), (Some(2), Some(&*whole)), "{run}");
        assert_ne!(run["owner_pod"], *owner);
    });
}

/// As a browser does when its connection was cut.
async fn come_back(url: &str, run: &str, last_id: &str) -> Reader {
    let began = std::time::Instant::now();
    loop {
        let client = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().unwrap();
        let living = client.get(format!("{url}/livez")).send().await;
        if living.is_ok() {
            return Reader::attach(url, run, Some(last_id)).await;
        }
        assert!(began.elapsed() < SOON, "no pod answers: {living:?}");
    }
}

fn whole(events: &[Event]) -> String {
    let mut words: Vec<&str> = Vec::new();
    for event in events {
        match event.name.as_str() {
            "chunk" => {
                assert_eq!(event.data["seq"].as_u64(), u64::try_from(words.len()).ok(), "{events:?}");
                words.push(event.data["body"].as_str().unwrap());
            }
            "reset" => words.truncate(usize::try_from(event.data["from_seq"].as_u64().unwrap()).unwrap()),
            _ => {}
        }
    }
    words.concat()
}
