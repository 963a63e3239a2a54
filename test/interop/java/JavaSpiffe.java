import static java.util.stream.Collectors.joining;

import io.spiffe.provider.SpiffeSslContextFactory;
import io.spiffe.provider.SpiffeSslContextFactory.SslContextOptions;
import io.spiffe.spiffeid.SpiffeId;
import io.spiffe.svid.jwtsvid.JwtSvid;
import io.spiffe.svid.x509svid.X509Svid;
import io.spiffe.workloadapi.DefaultJwtSource;
import io.spiffe.workloadapi.DefaultWorkloadApiClient;
import io.spiffe.workloadapi.DefaultX509Source;
import io.spiffe.workloadapi.Watcher;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.net.InetAddress;
import java.util.HashSet;
import java.util.Set;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLServerSocket;
import javax.net.ssl.SSLSocket;

/**
 * Takes identities from the Workload API with java-spiffe, and does mTLS with them by the JDK's TLS.
 *
 * <pre>
 * JavaSpiffe fetch                    prints each SPIFFE ID with its hint, and the bundles
 * JavaSpiffe watch N                  prints N updates: serial and end of validity of the default SVID
 * JavaSpiffe rotations N              sees N identities of a source, each with its successor there in time
 * JavaSpiffe jwt AUDIENCE             prints each JWT-SVID: ID, hint, audience, token
 * JavaSpiffe validate AUDIENCE TOKEN  has the token validated by the agent, and validates it by a source's bundles
 * JavaSpiffe jwtbundles N             prints N updates of the JWT bundles: trust domains and key IDs
 * JavaSpiffe serve                    listens on loopback, prints its address, greets one authorised peer
 * JavaSpiffe dial ADDRESS ID          greets the server, which must be ID
 * </pre>
 */
public final class JavaSpiffe {
  private JavaSpiffe() {}

  public static void main(String[] args) throws Exception {
    switch (args[0]) {
      case "fetch" -> fetch();
      case "watch" -> watch(Integer.parseInt(args[1]));
      case "rotations" -> rotations(Integer.parseInt(args[1]));
      case "jwt" -> jwt(args[1]);
      case "validate" -> validate(args[1], args[2]);
      case "jwtbundles" -> jwtBundles(Integer.parseInt(args[1]));
      case "serve" -> serve();
      case "dial" -> dial(args[1], args[2]);
      default -> throw new IllegalArgumentException("unknown command " + args[0]);
    }
    System.exit(0);
  }

  private static String quoted(String text) {
    return text == null ? "\"\"" : '"' + text + '"';
  }

  private static void fetch() throws Exception {
    try (var client = DefaultWorkloadApiClient.newClient()) {
      for (var svid : client.fetchX509Context().getX509Svids()) {
        System.out.println(svid.getSpiffeId() + " " + quoted(svid.getHint()));
      }
      client.fetchX509Bundles().getBundles().forEach((trustDomain, bundle) ->
          System.out.println("bundle " + trustDomain + " " + bundle.getX509Authorities().size()));
    }
  }

  private static String serial(X509Svid svid) {
    return svid.getLeaf().getSerialNumber().toString(16);
  }

  private static void watch(int count) throws Exception {
    try (var client = DefaultWorkloadApiClient.newClient()) {
      var last = "";
      for (var updates = updatesOf(client::watchX509Context); count > 0; ) {
        var svid = updates.take().getDefaultSvid();
        if (serial(svid).equals(last)) continue;
        last = serial(svid);
        System.out.println(last + " " + svid.getLeaf().getNotAfter().getTime() / 1000);
        count--;
      }
    }
  }

  private static <T> BlockingQueue<T> updatesOf(Consumer<Watcher<T>> watch) {
    var updates = new LinkedBlockingQueue<T>();
    watch.accept(new Watcher<>() {
      @Override
      public void onUpdate(T update) {
        updates.add(update);
      }

      @Override
      public void onError(Throwable error) {
        error.printStackTrace();
        System.exit(1);
      }
    });
    return updates;
  }

  private static void rotations(int count) throws Exception {
    try (var source = DefaultX509Source.newSource()) {
      var seen = new HashSet<String>();
      while (seen.size() < count) {
        var svid = source.getX509Svid();
        svid.getLeaf().checkValidity();
        if (!seen.add(serial(svid))) TimeUnit.MILLISECONDS.sleep(20);
      }
      System.out.println(seen.size() + " identities");
    }
  }

  private static void jwt(String audience) throws Exception {
    try (var client = DefaultWorkloadApiClient.newClient()) {
      for (var svid : client.fetchJwtSvids(audience)) {
        var audiences = svid.getAudience().stream().map(JavaSpiffe::quoted).collect(joining(", ", "[", "]"));
        System.out.println(
            svid.getSpiffeId() + " " + quoted(svid.getHint()) + " " + audiences + " " + svid.getToken());
      }
    }
  }

  private static void validate(String audience, String token) throws Exception {
    try (var client = DefaultWorkloadApiClient.newClient(); var source = DefaultJwtSource.newSource()) {
      var byAgent = client.validateJwtSvid(token, audience);
      var bySource = JwtSvid.parseAndValidate(token, source, Set.of(audience));
      var own = source.fetchJwtSvid(bySource.getSpiffeId(), audience);
      System.out.println(byAgent.getSpiffeId() + " " + bySource.getSpiffeId() + " " + own.getSpiffeId());
    }
  }

  private static void jwtBundles(int count) throws Exception {
    try (var client = DefaultWorkloadApiClient.newClient()) {
      for (var updates = updatesOf(client::watchJwtBundles); count > 0; count--) {
        updates.take().getBundles().forEach((trustDomain, bundle) -> {
          var keys = bundle.getJwtAuthorities().keySet().stream().sorted().map(JavaSpiffe::quoted);
          System.out.println(trustDomain + " " + keys.collect(joining(", ", "[", "]")));
        });
      }
    }
  }

  private static SSLContext sslContext(DefaultX509Source source, String id) throws Exception {
    var options = SslContextOptions.builder().sslProtocol("TLSv1.3").x509Source(source);
    if (id == null) options.acceptAnySpiffeId();
    else options.acceptedSpiffeIdsSupplier(() -> Set.of(SpiffeId.parse(id)));
    return SpiffeSslContextFactory.getSslContext(options.build());
  }

  private static void serve() throws Exception {
    try (var source = DefaultX509Source.newSource();
        var listener = (SSLServerSocket) sslContext(source, null)
            .getServerSocketFactory().createServerSocket(0, 1, InetAddress.getLoopbackAddress())) {
      listener.setNeedClientAuth(true);
      System.out.println("127.0.0.1:" + listener.getLocalPort());
      try (var socket = listener.accept()) {
        var line = new BufferedReader(new InputStreamReader(socket.getInputStream())).readLine();
        socket.getOutputStream().write(("hello " + line + "\n").getBytes());
      }
    }
  }

  private static void dial(String address, String id) throws Exception {
    var port = Integer.parseInt(address.substring(address.lastIndexOf(':') + 1));
    try (var source = DefaultX509Source.newSource();
        var socket = (SSLSocket) sslContext(source, id)
            .getSocketFactory().createSocket(InetAddress.getLoopbackAddress(), port)) {
      socket.getOutputStream().write("world\n".getBytes());
      System.out.println(new BufferedReader(new InputStreamReader(socket.getInputStream())).readLine());
    }
  }
}
