//! The one source of TLS settings, for all four kinds of connection.
//!
//! Files are read again for each connection, since certificates are rotated while pods run. As long as the files do not
//! change, the settings that were made from them are kept.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme, SupportedProtocolVersion,
};
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::conninfo::files;
use super::conninfo::{Roots, SslMode, TlsWords};
use crate::error::{Error, ErrorKind, Result};

/// The TLS part of one handshake.
pub(crate) type Connect<S> = <MakeRustlsConnect as MakeTlsConnect<S>>::TlsConnect;
/// A stream under TLS.
pub(crate) type TlsStream<S> = <MakeRustlsConnect as MakeTlsConnect<S>>::Stream;

/// Makes the TLS settings of connections from libpq's words.
#[derive(Clone)]
pub(crate) struct Tls {
    words: Arc<TlsWords>,
    /// The last settings, and the files from which they were made.
    made: Arc<Mutex<Option<(Files, MakeRustlsConnect)>>>,
}

/// The contents of the files that the words name.
#[derive(Clone, PartialEq, Eq, Default)]
struct Files {
    system: Vec<CertificateDer<'static>>,
    roots: Option<Vec<u8>>,
    revocations: Option<Vec<u8>>,
    certificate: Option<Vec<u8>>,
    key: Option<Vec<u8>>,
}

impl Tls {
    pub(crate) fn new(words: TlsWords) -> Self {
        Self { words: Arc::new(words), made: Arc::default() }
    }

    pub(crate) fn words(&self) -> &TlsWords {
        &self.words
    }

    /// The connector for `host`, or for a connection without TLS. Blocks on the files that the words name.
    pub(crate) fn connector<S>(&self, host: &str, plain: bool) -> Result<Connect<S>>
    where
        MakeRustlsConnect: MakeTlsConnect<S>,
        <MakeRustlsConnect as MakeTlsConnect<S>>::Error: std::error::Error + Send + Sync + 'static,
    {
        let mut maker = if plain { unused()? } else { self.maker()? };
        MakeTlsConnect::<S>::make_tls_connect(&mut maker, host)
            .map_err(|e| Error::new(ErrorKind::Tls, format!("preparing TLS for {host:?}: {e}")).caused_by(e))
    }

    fn maker(&self) -> Result<MakeRustlsConnect> {
        let files = self.read()?;
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, maker)) = &*made
            && *of == files
        {
            return Ok(maker.clone());
        }
        let maker = MakeRustlsConnect::new(client_config(&self.words, &files)?);
        *made = Some((files, maker.clone()));
        Ok(maker)
    }

    fn read(&self) -> Result<Files> {
        let mut read = Files::default();
        if self.words.roots == Some(Roots::System) {
            read.system = rustls_native_certs::load_native_certs().certs;
        }
        if let Some(Roots::File(file)) = &self.words.roots {
            read.roots = Some(files::read("sslrootcert", file)?);
        }
        if let Some(file) = &self.words.revocations {
            read.revocations = Some(files::read("sslcrl", file)?);
        }
        if let Some((certificate, key)) = &self.words.identity {
            read.certificate = Some(files::read("sslcert", certificate)?);
            files::check_private(key)?;
            read.key = Some(files::read("sslkey", key)?);
        }
        Ok(read)
    }
}

/// The connector that the driver gets if no TLS is used.
fn unused() -> Result<MakeRustlsConnect> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| cannot("TLS cannot be set up", &e).caused_by(e))?;
    Ok(MakeRustlsConnect::new(builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth()))
}

fn client_config(words: &TlsWords, files: &Files) -> Result<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let versions: &[&'static SupportedProtocolVersion] = match words.versions {
        (true, true) => &[&rustls::version::TLS13, &rustls::version::TLS12],
        (true, false) => &[&rustls::version::TLS12],
        (false, _) => &[&rustls::version::TLS13],
    };
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .map_err(|e| cannot("TLS cannot be set up", &e).caused_by(e))?;
    let chain = match (words.mode >= SslMode::VerifyCa, &words.roots) {
        (true, Some(roots)) => Some(chain_verifier(roots, files, &provider)?),
        _ => None,
    };
    let verifier = Verifier { chain, name: words.mode == SslMode::VerifyFull, provider };
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match (&files.certificate, &files.key) {
        (Some(certificate), Some(key)) => {
            let chain = certificates("sslcert", certificate)?;
            let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| {
                cannot("sslkey holds no private key that can be read (an encrypted one cannot)", &e).caused_by(e)
            })?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|e| cannot("sslcert and sslkey cannot be used", &e).caused_by(e))?
        }
        _ => builder.with_no_client_auth(),
    };
    config.enable_sni = words.sni;
    if words.direct {
        // With direct TLS the server requires ALPN, because no request in PostgreSQL's protocol came first.
        config.alpn_protocols = vec![b"postgresql".to_vec()];
    }
    Ok(config)
}

fn chain_verifier(roots: &Roots, files: &Files, provider: &Arc<CryptoProvider>) -> Result<Arc<WebPkiServerVerifier>> {
    let mut store = RootCertStore::empty();
    match roots {
        Roots::System => {
            store.add_parsable_certificates(files.system.iter().cloned());
        }
        Roots::File(_) => {
            for certificate in certificates("sslrootcert", files.roots.as_deref().unwrap_or_default())? {
                store.add(certificate).map_err(|e| {
                    cannot("sslrootcert has a certificate that cannot be a trust root", &e).caused_by(e)
                })?;
            }
        }
    }
    if store.is_empty() {
        return Err(Error::new(ErrorKind::Config, "the system has no certificate authorities to trust")
            .state("no connection was made")
            .help("install them (Debian: ca-certificates), or name a file by sslrootcert"));
    }
    let mut builder = WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(provider));
    if let Some(revocations) = &files.revocations {
        let lists: Vec<_> = CertificateRevocationListDer::pem_slice_iter(revocations)
            .collect::<Result<_, _>>()
            .map_err(|e| cannot("sslcrl cannot be read", &e).caused_by(e))?;
        builder = builder.with_crls(lists).enforce_revocation_expiration();
    }
    builder.build().map_err(|e| cannot("the trust roots cannot be used", &e).caused_by(e))
}

fn certificates(word: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(Error::new(ErrorKind::Config, format!("{word} holds no certificate in PEM form"))
            .state("no connection was made")
            .help("name a file with -----BEGIN CERTIFICATE-----")),
        Err(e) => Err(cannot(&format!("{word} cannot be read as PEM"), &e).caused_by(e)),
    }
}

fn cannot(what: &str, error: &dyn std::error::Error) -> Error {
    Error::new(ErrorKind::Config, format!("{what}: {error}"))
        .state("no connection was made")
        .help("correct the files that the connection string's TLS words name")
}

/// libpq's levels of trust: check nothing of the certificate, its chain, or its chain and its name. Each level proves
/// that the server has the certificate's key.
#[derive(Debug)]
struct Verifier {
    chain: Option<Arc<WebPkiServerVerifier>>,
    name: bool,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(chain) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        match chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // The name is checked last, after the chain was found valid.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.name => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Whether the host's name is one that no certificate can have.
pub(crate) fn is_unusable_host(error: &tokio_postgres::Error) -> bool {
    let io = std::error::Error::source(error).and_then(|s| s.downcast_ref::<std::io::Error>());
    io.is_some_and(|e| e.kind() == std::io::ErrorKind::InvalidInput)
}

/// The TLS fault, if that is the cause of `error`.
pub(crate) fn fault(error: &tokio_postgres::Error) -> Option<&rustls::Error> {
    let io = std::error::Error::source(error)?.downcast_ref::<std::io::Error>()?;
    io.get_ref()?.downcast_ref()
}

/// The advice for a TLS fault.
pub(crate) fn advice(fault: &rustls::Error) -> &'static str {
    use rustls::Error::{AlertReceived, InvalidCertificate};
    match fault {
        InvalidCertificate(certificate) => match certificate {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "name the authority that signed the server's certificate by sslrootcert; a certificate that signed \
                 itself proves nothing, so give the server one of an authority's"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "connect by a name that the certificate is made out to (a subject alternative name; a common name does \
                 not count), or write sslmode=verify-ca"
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "renew the server's certificate",
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "wait until the server's certificate is valid, or correct the clock"
            }
            CertificateError::ExpiredRevocationList | CertificateError::ExpiredRevocationListContext { .. } => {
                "renew the list of revocations that sslcrl names"
            }
            CertificateError::UnknownRevocationStatus => {
                "give sslcrl the lists of every authority in the server's chain"
            }
            CertificateError::Revoked => "give the server a certificate that was not revoked",
            _ => "give the server a certificate of X.509 version 3 of its own, signed by an authority",
        },
        AlertReceived(rustls::AlertDescription::CertificateRequired) => {
            "name a client certificate by sslcert and sslkey"
        }
        AlertReceived(_) => {
            "see the server's log for why it refused; a client certificate is named by sslcert and sslkey"
        }
        _ => "see the server's log, and the connection string's TLS words",
    }
}
