//! A certificate authority of a test, with a server's certificate and a client's in files, as `--tlscacert`, `--tlscert` and
//! `--tlskey` have them.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

/// The files of one authority.
pub struct Certificates {
    dir: PathBuf,
}

impl Certificates {
    /// Makes them all in `dir`; the server is the one at `address`.
    pub fn make(dir: &Path, address: &str) -> Self {
        std::fs::create_dir_all(dir).expect("a directory");
        let made = Self { dir: dir.to_owned() };
        let mut root = CertificateParams::default();
        root.distinguished_name.push(DnType::CommonName, "test authority");
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        made.write("ca.pem", &root.self_signed(&key).expect("a root").pem());
        let issuer = Issuer::new(root, key);
        made.issue(&issuer, "server", ExtendedKeyUsagePurpose::ServerAuth, &[address.to_owned()]);
        made.issue(&issuer, "client", ExtendedKeyUsagePurpose::ClientAuth, &[]);
        made
    }

    fn issue(
        &self,
        issuer: &Issuer<'_, KeyPair>,
        name: &str,
        usage: ExtendedKeyUsagePurpose,
        addresses: &[String],
    ) {
        let mut params = CertificateParams::new(addresses).expect("names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, issuer).expect("a certificate");
        self.write(&format!("{name}.pem"), &certificate.pem());
        self.write(&format!("{name}-key.pem"), &key.serialize_pem());
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.file(name), text).expect("written");
    }

    /// `ca.pem`, `server.pem`, `server-key.pem`, `client.pem` or `client-key.pem`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The docker program's options for a server of `roots`, as the client of this authority.
    pub fn client_options(&self, roots: &Self) -> Vec<String> {
        let option = |name: &str, file: PathBuf| format!("--{name}={}", file.display());
        vec![
            "--tlsverify".to_owned(),
            option("tlscacert", roots.file("ca.pem")),
            option("tlscert", self.file("client.pem")),
            option("tlskey", self.file("client-key.pem")),
        ]
    }
}
