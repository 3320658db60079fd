//! What is told of real containers and images.

use control_model::executor::{Executor, Provisions};
use control_runtime::EventKind;

use crate::common::{TestNode, task};

const RUNC: &str = "/usr/sbin/runc";

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_to_a_container_and_its_image_is_told_in_order() {
    let node = TestNode::new(RUNC, &[]);
    let mut events = node.oci.events().subscribe();
    node.import("toolbox:1", &[r#"ENTRYPOINT ["/toolbox"]"#]).await;
    let stays = task("toolbox:1", &["echo", "up", "+", "stay"]);
    node.oci.prepare(&stays, &Provisions::default()).await.expect("prepared");
    node.oci.start(&stays, &node.sandbox).await.expect("started");
    node.line(&stays, "up").await;
    node.oci.terminate(stays.id).await.expect("killed");
    node.oci.remove(stays.id).await.expect("removed");
    node.oci.remove_image("toolbox:1").await.expect("removed");
    let told = std::iter::from_fn(|| events.try_recv().ok()).map(|event| match event.kind {
        EventKind::Container { change, record } => {
            assert_eq!(record.task, stays.id);
            format!("{change:?}")
        }
        EventKind::Image { change, .. } => format!("{change:?}"),
        EventKind::Volume { change, .. } => panic!("no volume is asked for: {change:?}"),
    });
    let expected =
        ["Imported", "Created", "Started", "Signalled(9)", "Ended", "Removed", "Untagged", "Deleted"];
    assert_eq!(told.collect::<Vec<_>>(), expected);
    node.assert_clean();
}
