// Takes identities from the Workload API with go-spiffe, and does mTLS with them between two processes.
//
//	interop fetch            prints each SPIFFE ID with its hint
//	interop watch N          prints N updates: serial and end of validity of the default SVID
//	interop serve            listens on loopback, prints its address, greets one authorised peer
//	interop dial ADDRESS ID  greets the server, which must be ID
//	interop handshakes N     shakes hands with itself until N identities have been seen, and fails with the first that does
//	interop jwt AUDIENCE     prints each JWT-SVID: ID, hint, audience, token
//	interop validate AUDIENCE TOKEN
//	                         has the token validated by the agent, and validates it by the bundles of a source
//	interop jwtbundles N     prints N updates of the JWT bundles: trust domains and key IDs
//	interop life             prints what a watcher is told, until it is killed: SPIFFE IDs, or the code of an error
//	interop bundle TRUSTDOMAIN URL ID
//	                         fetches a bundle from the endpoint of ID, authenticated by the bundle on standard input
//	interop publish          serves the own bundle by its identity, prints the address and each request
//	interop parse            reads candidate SPIFFE IDs as JSON lines, answers "ok" or "no" for each
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/status"

	"crypto/tls"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 110*time.Second)
	defer cancel()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("which command?")
	}
	switch {
	case args[0] == "fetch":
		return fetch(ctx)
	case args[0] == "watch" && len(args) == 2:
		count, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		return watch(ctx, count)
	case args[0] == "serve":
		return serve(ctx)
	case args[0] == "dial" && len(args) == 3:
		return dial(ctx, args[1], args[2])
	case args[0] == "handshakes" && len(args) == 2:
		count, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		return handshakes(ctx, count)
	case args[0] == "jwt" && len(args) == 2:
		return fetchJWT(ctx, args[1])
	case args[0] == "validate" && len(args) == 3:
		return validateJWT(ctx, args[1], args[2])
	case args[0] == "jwtbundles" && len(args) == 2:
		count, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		return watchJWT(ctx, count)
	case args[0] == "life":
		return workloadapi.WatchX509Context(ctx, &lifePrinter{})
	case args[0] == "bundle" && len(args) == 4:
		return fetchBundle(ctx, args[1], args[2], args[3])
	case args[0] == "publish":
		return publish(ctx)
	case args[0] == "parse":
		return parse()
	default:
		return fmt.Errorf("unknown command %q", args)
	}
}

func fetch(ctx context.Context) error {
	svids, err := workloadapi.FetchX509SVIDs(ctx)
	if err != nil {
		return err
	}
	for _, svid := range svids {
		fmt.Printf("%s %q\n", svid.ID, svid.Hint)
	}
	bundles, err := workloadapi.FetchX509Bundles(ctx)
	if err != nil {
		return err
	}
	for _, bundle := range bundles.Bundles() {
		fmt.Printf("bundle %s %d\n", bundle.TrustDomain().Name(), len(bundle.X509Authorities()))
	}
	return nil
}

type printer struct {
	left int
	done context.CancelFunc
	last string
}

func (p *printer) OnX509ContextUpdate(update *workloadapi.X509Context) {
	leaf := update.DefaultSVID().Certificates[0]
	serial := leaf.SerialNumber.String()
	if serial == p.last {
		return
	}
	p.last = serial
	fmt.Printf("%s %d\n", serial, leaf.NotAfter.Unix())
	p.left--
	if p.left == 0 {
		p.done()
	}
}

func (p *printer) OnX509ContextWatchError(err error) {
	fmt.Fprintln(os.Stderr, "watch:", err)
}

func watch(ctx context.Context, count int) error {
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	p := &printer{left: count, done: cancel}
	err := workloadapi.WatchX509Context(inner, p)
	if p.left == 0 {
		return nil
	}
	return err
}

func serve(ctx context.Context) error {
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	svid, err := source.GetX509SVID()
	if err != nil {
		return err
	}
	config := tlsconfig.MTLSServerConfig(source, source, tlsconfig.AuthorizeMemberOf(svid.ID.TrustDomain()))
	listener, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		return err
	}
	defer listener.Close()
	fmt.Println(listener.Addr().String())
	conn, err := listener.Accept()
	if err != nil {
		return err
	}
	defer conn.Close()
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return err
	}
	_, err = io.WriteString(conn, "hello "+line)
	return err
}

func dial(ctx context.Context, address, id string) error {
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	want, err := spiffeid.FromString(id)
	if err != nil {
		return err
	}
	conn, err := tls.Dial("tcp", address, tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeID(want)))
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "world\n"); err != nil {
		return err
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return err
	}
	fmt.Print(answer)
	return nil
}

func handshakes(ctx context.Context, count int) error {
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	authorize := tlsconfig.AuthorizeAny()
	listener, err := tls.Listen("tcp", "127.0.0.1:0", tlsconfig.MTLSServerConfig(source, source, authorize))
	if err != nil {
		return err
	}
	defer listener.Close()
	failed := make(chan error, 1)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			if err := conn.(*tls.Conn).Handshake(); err != nil {
				failed <- fmt.Errorf("server: %w", err)
				return
			}
			conn.Close()
		}
	}()
	serials := make(map[string]bool)
	made := 0
	for len(serials) < count {
		conn, err := tls.Dial("tcp", listener.Addr().String(), tlsconfig.MTLSClientConfig(source, source, authorize))
		if err != nil {
			return fmt.Errorf("client: %w", err)
		}
		serials[conn.ConnectionState().PeerCertificates[0].SerialNumber.String()] = true
		conn.Close()
		made++
		select {
		case err := <-failed:
			return err
		case <-ctx.Done():
			return fmt.Errorf("%d identities after %d handshakes: %w", len(serials), made, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
	fmt.Printf("%d identities\n", len(serials))
	return nil
}

func fetchJWT(ctx context.Context, audience string) error {
	svids, err := workloadapi.FetchJWTSVIDs(ctx, jwtsvid.Params{Audience: audience})
	if err != nil {
		return err
	}
	for _, svid := range svids {
		fmt.Printf("%s %q %q %s\n", svid.ID, svid.Hint, svid.Audience, svid.Marshal())
	}
	return nil
}

func validateJWT(ctx context.Context, audience, token string) error {
	svid, err := workloadapi.ValidateJWTSVID(ctx, token, audience)
	if err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	source, err := workloadapi.NewJWTSource(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	local, err := jwtsvid.ParseAndValidate(token, source, []string{audience})
	if err != nil {
		return fmt.Errorf("source: %w", err)
	}
	own, err := source.FetchJWTSVID(ctx, jwtsvid.Params{Audience: audience, Subject: local.ID})
	if err != nil {
		return err
	}
	fmt.Printf("%s %s %s\n", svid.ID, local.ID, own.ID)
	return nil
}

type keyPrinter struct {
	left int
	done context.CancelFunc
}

func (p *keyPrinter) OnJWTBundlesUpdate(set *jwtbundle.Set) {
	for _, bundle := range set.Bundles() {
		keys := make([]string, 0)
		for id := range bundle.JWTAuthorities() {
			keys = append(keys, id)
		}
		sort.Strings(keys)
		fmt.Printf("%s %q\n", bundle.TrustDomain().Name(), keys)
	}
	p.left--
	if p.left == 0 {
		p.done()
	}
}

func (p *keyPrinter) OnJWTBundlesWatchError(err error) {
	fmt.Fprintln(os.Stderr, "watch:", err)
}

func watchJWT(ctx context.Context, count int) error {
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	p := &keyPrinter{left: count, done: cancel}
	err := workloadapi.WatchJWTBundles(inner, p)
	if p.left == 0 {
		return nil
	}
	return err
}

type lifePrinter struct {
	last string
}

func (p *lifePrinter) OnX509ContextUpdate(update *workloadapi.X509Context) {
	ids := make([]string, 0)
	for _, svid := range update.SVIDs {
		ids = append(ids, svid.ID.Path())
	}
	p.print(strings.Join(ids, " "))
}

func (p *lifePrinter) OnX509ContextWatchError(err error) {
	p.print(status.Code(err).String())
}

func (p *lifePrinter) print(now string) {
	if now != p.last {
		fmt.Println(now)
	}
	p.last = now
}

func fetchBundle(ctx context.Context, domain, url, id string) error {
	trustDomain, err := spiffeid.TrustDomainFromString(domain)
	if err != nil {
		return err
	}
	endpoint, err := spiffeid.FromString(id)
	if err != nil {
		return err
	}
	known, err := spiffebundle.Read(trustDomain, os.Stdin)
	if err != nil {
		return err
	}
	bundle, err := federation.FetchBundle(ctx, trustDomain, url, federation.WithSPIFFEAuth(known, endpoint))
	if err != nil {
		return err
	}
	sequence, _ := bundle.SequenceNumber()
	hint, _ := bundle.RefreshHint()
	fmt.Println(sequence, hint, len(bundle.X509Authorities()), len(bundle.JWTAuthorities()), bundle.Equal(known))
	return nil
}

func publish(ctx context.Context) error {
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	svid, err := source.GetX509SVID()
	if err != nil {
		return err
	}
	bundles, err := workloadapi.NewBundleSource(ctx)
	if err != nil {
		return err
	}
	defer bundles.Close()
	handler, err := federation.NewHandler(svid.ID.TrustDomain(), bundles)
	if err != nil {
		return err
	}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", tlsconfig.TLSServerConfig(source))
	if err != nil {
		return err
	}
	fmt.Println(listener.Addr().String())
	return http.Serve(listener, http.HandlerFunc(func(writer http.ResponseWriter, request *http.Request) {
		fmt.Println(request.Method, request.URL.Path)
		handler.ServeHTTP(writer, request)
	}))
}

func parse() error {
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(make([]byte, 1<<20), 1<<20)
	for in.Scan() {
		var text string
		if err := json.Unmarshal(in.Bytes(), &text); err != nil {
			return err
		}
		if id, err := spiffeid.FromString(text); err == nil && id.String() == text {
			fmt.Println("ok")
		} else {
			fmt.Println("no")
		}
	}
	return in.Err()
}
