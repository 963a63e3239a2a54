//! Takes identities from the Workload API with the crate `spiffe`, and does mTLS with them by rustls.
//!
//!     rust-spiffe fetch                    prints each SPIFFE ID with its hint, and the bundles
//!     rust-spiffe watch N                  prints N updates: serial and end of validity of the default SVID
//!     rust-spiffe rotations N              sees N identities of a source, each with its successor there in time
//!     rust-spiffe jwt AUDIENCE             prints each JWT-SVID: ID, hint, audience, token
//!     rust-spiffe validate AUDIENCE TOKEN  has the token validated by the agent, and validates it by a source's bundles
//!     rust-spiffe jwtbundles N             prints N updates of the JWT bundles: trust domains and key IDs
//!     rust-spiffe serve                    listens on loopback, prints its address, greets one authorised peer
//!     rust-spiffe dial ADDRESS ID          greets the server, which must be ID

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use spiffe::{JwtSource, JwtSvid, WorkloadApiClient, X509Source, X509Svid};
use spiffe_rustls::{authorizer, mtls_client, mtls_server};
use x509_parser::prelude::{FromDer, X509Certificate};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

fn main() -> Outcome {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(110), run(&args)).await? })
}

async fn run(args: &[&str]) -> Outcome {
    match args {
        ["fetch"] => fetch().await,
        ["watch", count] => watch(count.parse()?).await,
        ["rotations", count] => rotations(count.parse()?).await,
        ["jwt", audience] => jwt(audience).await,
        ["validate", audience, token] => validate(audience, token).await,
        ["jwtbundles", count] => jwt_bundles(count.parse()?).await,
        ["serve"] => serve().await,
        ["dial", address, id] => dial(address, id).await,
        _ => Err(format!("unknown command {args:?}").into()),
    }
}

async fn fetch() -> Outcome {
    let client = WorkloadApiClient::connect_env().await?;
    let context = client.fetch_x509_context().await?;
    for svid in context.svids() {
        println!("{} {:?}", svid.spiffe_id(), svid.hint().unwrap_or(""));
    }
    for (trust_domain, bundle) in client.fetch_x509_bundles().await?.iter() {
        println!("bundle {trust_domain} {}", bundle.authorities().len());
    }
    Ok(())
}

/// Serial number and end of validity in Unix seconds.
fn leaf(svid: &X509Svid) -> Outcome<(String, i64)> {
    let (_, certificate) = X509Certificate::from_der(svid.leaf().as_bytes())?;
    Ok((certificate.raw_serial_as_string(), certificate.validity().not_after.timestamp()))
}

async fn watch(count: usize) -> Outcome {
    let client = WorkloadApiClient::connect_env().await?;
    let mut updates = client.stream_x509_contexts().await?;
    let mut last = String::new();
    let mut seen = 0;
    while seen < count {
        let context = updates.next().await.ok_or("the stream has ended")??;
        let (serial, end) = leaf(context.default_svid().ok_or("no identity")?)?;
        if serial != last {
            println!("{serial} {end}");
            seen += 1;
            last = serial;
        }
    }
    Ok(())
}

async fn rotations(count: usize) -> Outcome {
    let source = X509Source::new().await?;
    let mut updates = source.updated();
    let mut seen = std::collections::HashSet::new();
    loop {
        let (serial, end) = leaf(source.svid()?.as_ref())?;
        seen.insert(serial);
        if seen.len() == count {
            println!("{count} identities");
            return Ok(());
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let left = Duration::from_secs(end.try_into()?).saturating_sub(now);
        tokio::time::timeout(left, updates.changed()).await.map_err(|_| "the identity has expired")??;
    }
}

async fn jwt(audience: &str) -> Outcome {
    let client = WorkloadApiClient::connect_env().await?;
    for svid in client.fetch_all_jwt_svids([audience], None).await? {
        let hint = svid.hint().unwrap_or("");
        println!("{} {hint:?} {:?} {}", svid.spiffe_id(), svid.audience(), svid.token());
    }
    Ok(())
}

async fn validate(audience: &str, token: &str) -> Outcome {
    let client = WorkloadApiClient::connect_env().await?;
    let by_agent = client.validate_jwt_token(audience, token).await.map_err(|error| format!("agent: {error}"))?;
    let source = JwtSource::new().await?;
    let by_source =
        JwtSvid::parse_and_validate(token, &source, &[audience]).map_err(|error| format!("source: {error}"))?;
    let own = source.fetch_jwt_svid_with_id([audience], Some(by_source.spiffe_id())).await?;
    println!("{} {} {}", by_agent.spiffe_id(), by_source.spiffe_id(), own.spiffe_id());
    Ok(())
}

async fn jwt_bundles(count: usize) -> Outcome {
    let client = WorkloadApiClient::connect_env().await?;
    let mut updates = client.stream_jwt_bundles().await?;
    for _ in 0..count {
        for (trust_domain, bundle) in updates.next().await.ok_or("the stream has ended")??.iter() {
            let mut keys: Vec<&str> = bundle.jwt_authorities().map(|authority| authority.key_id()).collect();
            keys.sort_unstable();
            println!("{trust_domain} {keys:?}");
        }
    }
    Ok(())
}

async fn serve() -> Outcome {
    let source = X509Source::new().await?;
    let trust_domain = source.svid()?.spiffe_id().trust_domain().to_string();
    let config = mtls_server(source).authorize(authorizer::trust_domains([trust_domain])?).build()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?);
    let (socket, _) = listener.accept()?;
    let mut stream = rustls::StreamOwned::new(rustls::ServerConnection::new(Arc::new(config))?, socket);
    let mut line = String::new();
    BufReader::new(&mut stream).read_line(&mut line)?;
    write!(stream, "hello {line}")?;
    stream.conn.send_close_notify();
    stream.flush()?;
    Ok(())
}

async fn dial(address: &str, id: &str) -> Outcome {
    let config = mtls_client(X509Source::new().await?).authorize(authorizer::exact([id])?).build()?;
    let connection = rustls::ClientConnection::new(Arc::new(config), "localhost".try_into()?)?;
    let mut stream = rustls::StreamOwned::new(connection, TcpStream::connect(address)?);
    stream.write_all(b"world\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    print!("{answer}");
    Ok(())
}
