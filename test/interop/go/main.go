// Takes identities from the Workload API with go-spiffe, and does mTLS with them between two processes.
//
//	interop fetch            prints each SPIFFE ID with its hint
//	interop watch N          prints N updates: serial and end of validity of the default SVID
//	interop serve            listens on loopback, prints its address, greets one authorised peer
//	interop dial ADDRESS ID  greets the server, which must be ID
//	interop parse            reads candidate SPIFFE IDs as JSON lines, answers "ok" or "no" for each
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"crypto/tls"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
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
