//! Who a container's process runs as: `name|uid[:group|gid]` looked up in the image's own passwd and group files.

/// Ids for the process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ProcessUser {
    pub uid: u32,
    pub gid: u32,
    pub additional_gids: Vec<u32>,
}

/// Why a user or group does not exist in the image. Docker's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UserError {
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoUser(String),
    #[error("unable to find group {0}: no matching entries in group file")]
    NoGroup(String),
}

/// Resolves `user` (may be empty: root) and further `groups` with the texts of `/etc/passwd` and `/etc/group`.
pub(super) fn resolve(
    user: &str,
    groups: &[String],
    passwd: &str,
    group_file: &str,
) -> Result<ProcessUser, UserError> {
    let (user, group) = user.split_once(':').map_or((user, None), |(user, group)| (user, Some(group)));
    let user = if user.is_empty() { "0" } else { user };
    let entry = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| {
        fields.first() == Some(&user) || (user.parse::<u32>().is_ok() && fields.get(2) == Some(&user))
    });
    let field = |at: usize| entry.as_ref().and_then(|fields| fields.get(at)).and_then(|id| id.parse().ok());
    let uid = field(2).or_else(|| user.parse().ok()).ok_or_else(|| UserError::NoUser(user.to_owned()))?;
    let gid = match group.filter(|group| !group.is_empty()) {
        Some(group) => gid_of(group, group_file)?,
        None => field(3).unwrap_or(0),
    };
    let name = entry.as_ref().and_then(|fields| fields.first()).copied().unwrap_or_default();
    let mut additional_gids = memberships(name, group_file);
    for group in groups {
        additional_gids.push(gid_of(group, group_file)?);
    }
    additional_gids.dedup();
    Ok(ProcessUser { uid, gid, additional_gids })
}

fn gid_of(group: &str, group_file: &str) -> Result<u32, UserError> {
    let named = group_file.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let named = named.into_iter().find(|fields| fields.first() == Some(&group));
    let listed = named.and_then(|fields| fields.get(2).and_then(|gid| gid.parse().ok()));
    listed.or_else(|| group.parse().ok()).ok_or_else(|| UserError::NoGroup(group.to_owned()))
}

/// Groups whose member list has the user.
fn memberships(name: &str, group_file: &str) -> Vec<u32> {
    let lines = group_file.lines().map(|line| line.split(':').collect::<Vec<_>>());
    lines
        .filter(|fields| {
            !name.is_empty() && fields.get(3).is_some_and(|all| all.split(',').any(|one| one == name))
        })
        .filter_map(|fields| fields.get(2).and_then(|gid| gid.parse().ok()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/:/bin/false\nbroken\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nlog:x:50:web,other\n";

    fn ids(user: &str, groups: &[&str]) -> Result<(u32, u32, Vec<u32>), String> {
        let groups: Vec<String> = groups.iter().map(|&group| group.to_owned()).collect();
        resolve(user, &groups, PASSWD, GROUP)
            .map(|user| (user.uid, user.gid, user.additional_gids))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn names_and_numbers_resolve() {
        assert_eq!(ids("", &[]), Ok((0, 0, vec![])));
        assert_eq!(ids("web", &[]), Ok((33, 34, vec![50])));
        assert_eq!(ids("33", &[]), Ok((33, 34, vec![50])));
        assert_eq!(ids("1000", &["log", "7"]), Ok((1000, 0, vec![50, 7])));
        assert_eq!(ids("web:log", &[]), Ok((33, 50, vec![50])));
    }

    #[test]
    fn unknown_names_get_dockers_words() {
        assert_eq!(
            ids("nobody", &[]),
            Err("unable to find user nobody: no matching entries in passwd file".into())
        );
        assert_eq!(
            ids("web:x", &[]),
            Err("unable to find group x: no matching entries in group file".into())
        );
    }
}
