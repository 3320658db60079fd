//! Calls without a certificate: how a node that has only a join token comes to trust a cluster.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tonic::transport::Channel;

use crate::channels::{connect_tls, endpoint};
use crate::identity::{IdentityError, client_builder, provider, read_roots};
use crate::{MAX_CA_MESSAGE_BYTES, pb};

/// How long the manager may take to say its root certificate (swarmkit's 5 s).
const ROOT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a cluster could not be joined safely.
#[derive(Debug, thiserror::Error)]
pub enum JoinError<E> {
    /// The manager did not answer.
    #[error("{0}")]
    Unreachable(tonic::Status),
    /// The root that the manager gave is not the one of the token.
    #[error(transparent)]
    WrongRoot(E),
    /// The root is no certificate.
    #[error(transparent)]
    BadRoot(#[from] IdentityError),
}

/// Asks the manager at `addr` for the cluster's root, lets `verify` compare it with what the join token says, and
/// returns its PEM with a channel to a server that proved to be a manager under this root.
///
/// Nothing secret is sent before `verify` agreed: the first call goes to whoever answers.
pub async fn join_channel<E>(
    addr: SocketAddr,
    verify: impl FnOnce(&str) -> Result<(), E>,
) -> Result<(String, Channel), JoinError<E>> {
    let root = fetch_root(addr).await.map_err(JoinError::Unreachable)?;
    verify(&root).map_err(JoinError::WrongRoot)?;
    let channel = anonymous_channel(addr, &root)?;
    Ok((root, channel))
}

/// A channel without a certificate of our own, to a manager under one of `roots` (PEM).
pub fn anonymous_channel(addr: SocketAddr, roots: &str) -> Result<Channel, IdentityError> {
    let config = client_builder()?.with_root_certificates(read_roots(roots)?).with_no_client_auth();
    Ok(channel(addr, config))
}

/// The root certificate that the server at `addr` claims to have, from whoever that is.
async fn fetch_root(addr: SocketAddr) -> Result<String, tonic::Status> {
    let config = client_builder()
        .map_err(|error| tonic::Status::internal(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer))
        .with_no_client_auth();
    let mut client =
        pb::ca_client::CaClient::new(channel(addr, config)).max_decoding_message_size(MAX_CA_MESSAGE_BYTES);
    let mut request = tonic::Request::new(pb::Empty {});
    request.set_timeout(ROOT_TIMEOUT);
    let call = client.get_root_certificate(request);
    let reply = tokio::time::timeout(ROOT_TIMEOUT, call)
        .await
        .map_err(|_| tonic::Status::deadline_exceeded("context deadline exceeded"))??;
    Ok(reply.into_inner().pem)
}

fn channel(addr: SocketAddr, mut config: ClientConfig) -> Channel {
    config.alpn_protocols = vec![b"h2".to_vec()];
    let config = Arc::new(config);
    endpoint().connect_with_connector_lazy(tower::service_fn(move |_| {
        let config = config.clone();
        async move { connect_tls(addr, config).await.map(TokioIo::new) }
    }))
}

/// Accepts every server: used for one public message, whose content is verified by its digest.
#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
