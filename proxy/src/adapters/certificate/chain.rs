//! What certificates say of themselves, and the order of a chain.

use std::net::{Ipv4Addr, Ipv6Addr};

use model::name::HostPattern;
use model::own_certificates::{Facts, KeyKind};
use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::error::X509Error as ParseError;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

#[derive(Debug, thiserror::Error)]
#[error("it cannot be taken apart: {0}")]
pub struct X509Error(String);

impl From<x509_parser::nom::Err<ParseError>> for X509Error {
    fn from(error: x509_parser::nom::Err<ParseError>) -> Self {
        Self(error.to_string())
    }
}

/// A chain as it is sent.
pub struct Chain {
    pub ders: Vec<CertificateDer<'static>>,
    /// What a client may stumble over.
    pub remarks: Vec<String>,
}

fn parse<'d>(der: &'d CertificateDer<'_>) -> Result<X509Certificate<'d>, X509Error> {
    Ok(X509Certificate::from_der(der)?.1)
}

/// The length of an RSA key; `None` for keys of other kinds.
pub fn rsa_bits(der: &CertificateDer<'_>) -> Result<Option<usize>, X509Error> {
    let parsed = parse(der)?;
    match parsed.public_key().parsed() {
        Ok(PublicKey::RSA(key)) => Ok(Some(key.key_size())),
        _ => Ok(None),
    }
}

/// Of the first one in the chain.
pub fn facts(chain: &[CertificateDer<'_>], key: KeyKind) -> Result<Facts, X509Error> {
    let own = chain.first().ok_or_else(|| X509Error("there is none".to_owned()))?;
    let parsed = parse(own)?;
    let alternatives = parsed.subject_alternative_name().ok().flatten();
    let alternatives = alternatives.iter().flat_map(|extension| &extension.value.general_names);
    let ms = |seconds: i64| u64::try_from(seconds).unwrap_or(0).saturating_mul(1000);
    Ok(Facts {
        names: alternatives.filter_map(name).collect(),
        key,
        not_before_ms: ms(parsed.validity().not_before.timestamp()),
        not_after_ms: ms(parsed.validity().not_after.timestamp()),
    })
}

/// As hosts write it; `None` if no host can be so named.
fn name(name: &GeneralName<'_>) -> Option<HostPattern> {
    let text = match name {
        GeneralName::DNSName(name) => (*name).to_owned(),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => Ipv4Addr::from(<[u8; 4]>::try_from(*bytes).ok()?).to_string(),
            _ => format!("[{}]", Ipv6Addr::from(<[u8; 16]>::try_from(*bytes).ok()?)),
        },
        _ => return None,
    };
    text.parse().ok()
}

/// The chain with the server's own certificate, that at `own`, in front, and each before the one that signed it.
/// What does not belong to the chain comes last: nothing is left out.
pub fn in_order(mut chain: Vec<CertificateDer<'static>>, own: usize) -> Result<Chain, X509Error> {
    let before = chain.clone();
    let mut ordered = vec![chain.remove(own)];
    loop {
        let last = ordered.last().map(parse).transpose()?;
        let Some(last) = last.filter(|last| last.issuer().as_raw() != last.subject().as_raw()) else { break };
        let mut next = None;
        for (index, der) in chain.iter().enumerate() {
            if parse(der)?.subject().as_raw() == last.issuer().as_raw() {
                next = Some(index);
                break;
            }
        }
        let Some(next) = next else { break };
        ordered.push(chain.remove(next));
    }
    let mut remarks = Vec::new();
    if !chain.is_empty() {
        let strangers = chain.iter().map(|der| Ok(format!("`{}`", parse(der)?.subject())));
        let strangers = strangers.collect::<Result<Vec<_>, X509Error>>()?.join(", ");
        remarks.push(format!("of its chain, {strangers} signed nothing that comes before"));
    }
    let own = parse(&ordered[0])?;
    if ordered.len() == 1 && own.issuer().as_raw() != own.subject().as_raw() {
        let issuer = own.issuer();
        remarks.push(format!(
            "it comes without the certificate of its issuer `{issuer}`, so that clients who do not know that one refuse it"
        ));
    }
    ordered.append(&mut chain);
    if ordered != before {
        remarks.push("its chain is not in order, and is sent in the right one".to_owned());
    }
    Ok(Chain { ders: ordered, remarks })
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

    use super::*;

    fn params(name: &str, ca: bool) -> CertificateParams {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = if ca { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::NoCa };
        params
    }

    /// A root, what it signed, and what that signed in turn; and one that has nothing to do with them.
    fn certificates() -> [CertificateDer<'static>; 4] {
        let [root_key, middle_key, leaf_key, other_key] = [(); 4].map(|()| KeyPair::generate().unwrap());
        let root = params("root.test", true).self_signed(&root_key).unwrap();
        let root_issuer = Issuer::new(params("root.test", true), &root_key);
        let middle = params("middle.test", true).signed_by(&middle_key, &root_issuer).unwrap();
        let middle_issuer = Issuer::new(params("middle.test", true), &middle_key);
        let leaf = params("leaf.test", false).signed_by(&leaf_key, &middle_issuer).unwrap();
        let other = params("other.test", false).self_signed(&other_key).unwrap();
        [leaf, middle, root, other].map(|one| one.der().clone())
    }

    #[test]
    fn chains_are_put_in_order_and_lose_nothing() {
        let all = certificates();
        let order = "is not in order";
        let alone = "without the certificate of its issuer `CN=middle.test`";
        let stranger = "`CN=other.test` signed nothing";
        for (given, want, remarks) in [
            (&[0, 1][..], &[0, 1][..], vec![]),
            (&[0, 1, 2], &[0, 1, 2], vec![]),
            (&[3], &[3], vec![]),
            (&[0], &[0], vec![alone]),
            (&[2, 1, 0], &[0, 1, 2], vec![order]),
            (&[0, 2, 1], &[0, 1, 2], vec![order]),
            (&[1, 0], &[0, 1], vec![order]),
            (&[0, 1, 3], &[0, 1, 3], vec![stranger]),
            (&[0, 3, 1], &[0, 1, 3], vec![stranger, order]),
            (&[0, 2], &[0, 2], vec!["`CN=root.test` signed nothing", alone]),
        ] {
            let pick = |places: &[usize]| places.iter().map(|place| all[*place].clone()).collect::<Vec<_>>();
            let own = given.iter().position(|place| *place == want[0]).unwrap();
            let chain = in_order(pick(given), own).unwrap();
            assert!(chain.ders == pick(want), "{given:?}");
            assert_eq!(chain.remarks.len(), remarks.len(), "{given:?}: {:?}", chain.remarks);
            for (got, want) in chain.remarks.iter().zip(remarks) {
                assert!(got.contains(want), "{given:?}: {got}");
            }
        }
    }

    #[test]
    fn facts_are_read() {
        let names = ["shop.test", "*.shop.test", "127.0.0.1", "::1"];
        let mut params = CertificateParams::new(names.map(str::to_owned).to_vec()).unwrap();
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2999, 7, 1);
        let key = KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().clone();
        let facts = facts(std::slice::from_ref(&der), KeyKind::Ecdsa).unwrap();
        let found: Vec<_> = facts.names.iter().map(ToString::to_string).collect();
        assert_eq!(found, ["shop.test", "*.shop.test", "127.0.0.1", "[::1]"]);
        assert_eq!((facts.not_before_ms, facts.not_after_ms), (1_577_836_800_000, 32_487_782_400_000));
        assert_eq!(rsa_bits(&der).unwrap(), None);
        let rubbish = CertificateDer::from(vec![0u8; 8]);
        assert!(rsa_bits(&rubbish).is_err());
    }
}
