//! Secrets and configs through the real CLI.

mod common;

use common::Daemon;
use common::cli::{mask, programs};
use control_model::DependencyKind;
use control_store::ReplicatedStore as _;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_and_configs_live_through_all_their_commands() {
    let daemon = Daemon::manager().await;
    for program in programs() {
        let run = async |line: &str, input: &[u8]| {
            let output = daemon.docker_by(program, line, input).await;
            assert_eq!((output.code, output.stderr.as_str()), (0, ""), "{program} {line}");
            mask(&output.stdout)
        };
        let refused = async |line: &str| {
            let output = daemon.docker_by(program, line, b"other").await;
            assert_ne!(output.code, 0, "{program} {line}");
            mask(&output.stderr)
        };
        assert_eq!(run("secret create --label tier=db key -", b"hunter2").await, "<id>");
        assert_eq!(run("config create --template-driver golang page -", b"{{.Service.Name}}").await, "<id>");
        assert_eq!(run("secret ls --format '{{.Name}} {{.Labels}}'", b"").await, "key tier=db");
        assert_eq!(run("secret ls -q --filter name=k --filter label=tier=db", b"").await, "<id>");
        assert_eq!(run("secret ls -q --filter name=other", b"").await, "");
        let shown = run("secret inspect key", b"").await;
        assert!(
            shown.contains(r#""tier": "db""#) && !shown.contains("Data") && !shown.contains("aHVudGVyMg"),
            "{shown}"
        );
        assert!(run("config inspect --pretty page", b"").await.contains("{{.Service.Name}}"));
        assert_eq!(run("config inspect --format '{{.Spec.Templating.Name}}' page", b"").await, "golang");
        assert!(refused("secret create key -").await.contains("secret key already exists"));
        assert!(
            refused("secret create .key -").await.contains("invalid name, only 64 [a-zA-Z0-9-_.] characters")
        );
        assert!(refused("secret inspect nothing").await.contains("nothing"));

        let create = "service create -d --no-resolve-image --name web --secret key \
                      --config source=page,target=/etc/page.html,uid=33,mode=0440 whoami:v1";
        assert_eq!(run(create, b"").await, "<id>");
        daemon.running("web", 1).await;
        let format = "'{{range .Spec.TaskTemplate.ContainerSpec.Secrets}}{{.SecretName}} {{.File.Name}} {{.File.UID}} \
                      {{.File.Mode}}{{end}}, {{range .Spec.TaskTemplate.ContainerSpec.Configs}}{{.ConfigName}} \
                      {{.File.Name}} {{.File.UID}} {{.File.Mode}}{{end}}'";
        assert_eq!(
            run(&format!("service inspect --format {format} web"), b"").await,
            "key key 0 -r--r--r--, page /etc/page.html 33 -r--r-----"
        );
        assert!(
            refused("secret rm key").await.contains("secret 'key' is in use by the following service: web")
        );
        assert!(
            refused("config rm page").await.contains("config 'page' is in use by the following service: web")
        );
        // While the update is under way it may be rolled back to them; when it has ended they are free.
        assert_eq!(
            run("service update --secret-rm key --config-rm page web", b"").await.lines().next(),
            Some("web")
        );
        assert_eq!(run("secret rm key", b"").await, "key");
        assert_eq!(run("config rm page", b"").await, "page");
        assert_eq!(run("service rm web", b"").await, "web");
    }
}

/// As `docker stack rm` does it: the services are on their way out when their secrets go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_is_being_removed_keeps_no_secret() {
    let daemon = Daemon::manager().await;
    let (status, reply) =
        daemon.request("POST", "/secrets/create", br#"{"Name":"key","Data":"aHVudGVyMg=="}"#).await;
    assert_eq!(status, 201, "{reply}");
    assert_eq!(
        daemon.prints("service create -d --no-resolve-image --name web --secret key whoami:v1").await,
        "<id>"
    );
    daemon.running("web", 1).await;
    // Its tasks take their time to stop, and the service is there for so long.
    assert_eq!(daemon.prints("service rm web").await, "web");
    assert_eq!(daemon.prints("secret rm key").await, "key");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_service_can_not_be_given_is_refused() {
    let daemon = Daemon::manager().await;
    let post = async |path: &str, body: &str| daemon.request("POST", path, body.as_bytes()).await;
    let (status, reply) = post("/secrets/create", r#"{"Name":"key","Data":"aHVudGVyMg=="}"#).await;
    assert_eq!(status, 201, "{reply}");
    let state = daemon.store.state();
    let found = state.dependency_by_name(DependencyKind::Secret, "key").expect("made");
    assert_eq!(found.spec.data.0, b"hunter2");
    let id = found.id;
    let service = |files: &str| {
        format!(r#"{{"Name":"web","TaskTemplate":{{"ContainerSpec":{{"Image":"whoami:v1",{files}}}}}}}"#)
    };
    let secret = |id: &str, target: &str| {
        format!(
            r#"{{"SecretID":"{id}","SecretName":"key","File":{{"Name":"{target}","UID":"0","GID":"0","Mode":292}}}}"#
        )
    };
    let good = secret(&id.to_string(), "key");
    for (files, why) in [
        (format!(r#""Secrets":[{}]"#, secret("nothing", "key")), "secret not found: key"),
        (format!(r#""Secrets":[{}]"#, secret(&"1".repeat(25), "key")), "secret not found: key"),
        (
            format!(r#""Secrets":[{good},{good}]"#),
            "secret references 'key' and 'key' have a conflicting target: 'key'",
        ),
        (
            format!(r#""Secrets":[{}]"#, secret(&id.to_string(), "../key")),
            "malformed file secret reference, invalid target file name provided",
        ),
    ] {
        let (status, reply) = post("/services/create", &service(&files)).await;
        assert_eq!(status, 400, "{files}: {reply}");
        assert!(reply.contains(why), "{reply}");
    }
    let version = found.meta.spec_version;
    for (path, body, expected, why) in [
        ("/secrets/create", r#"{"Name":"a","Data":"!"}"#.to_owned(), 400, "illegal base64 data"),
        ("/secrets/create", r#"{"Name":"a"}"#.to_owned(), 400, "secret data must be larger than 0"),
        (
            "/secrets/create",
            r#"{"Name":"a","Driver":{"Name":"vault"}}"#.to_owned(),
            501,
            "secret driver vault",
        ),
        (
            &format!("/secrets/key/update?version={version}"),
            r#"{"Name":"key","Data":"YQ=="}"#.to_owned(),
            400,
            "only updates to Labels are allowed",
        ),
        ("/secrets/key/update?version=1", r#"{"Name":"key"}"#.to_owned(), 500, "update out of sequence"),
    ] {
        let (status, reply) = post(path, &body).await;
        assert_eq!(status, expected, "{path} {body}: {reply}");
        assert!(reply.contains(why), "{reply}");
    }
    let labelled = r#"{"Name":"key","Labels":{"a":"b"}}"#;
    let (status, reply) = post(&format!("/secrets/key/update?version={version}"), labelled).await;
    assert_eq!(status, 200, "{reply}");
}
