// With the race detector on, go test ./... would compile all of Kubernetes once more.

//go:build !race

// Command controlplane runs a Kubernetes API server and etcd in one process, on the loopback interface only: enough of
// a cluster for programs that talk to the API, ready in seconds, with nothing to install. It enforces RBAC; it runs no
// controllers, so nothing is garbage collected and a deleted namespace stays.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/leasehold-go/leasehold/testbed/internal/datadir"
	"github.com/leasehold-go/leasehold/testbed/internal/loopback"
)

func main() {
	var o options
	flag.StringVar(&o.dir, "dir", "",
		"keep data, keys and log in `DIR` and go on with what is there: the same data, the same\naddress, the same "+
			"kubeconfig (default a temporary directory, removed at the end)")
	flag.IntVar(&o.port, "port", 0,
		"listen on 127.0.0.1:`PORT` (default the port of last time in DIR, else a free one)")
	flag.BoolVar(&o.fsync, "fsync", true,
		"let etcd wait for the disk before it answers a write, as in production; without it\ndata survives a killed "+
			"process, but not a crashed machine")
	flag.BoolVar(&o.coordinated, "coordinated", false, "turn on coordinated leader election (KEP-4355)")
	flag.StringVar(&o.gates, "gates", "", "turn feature gates on or off: `NAME=true,…`")
	flag.BoolVar(&o.untilEOF, "until-eof", false,
		"stop too when standard input ends, as it does for a child however its parent ended")
	flag.BoolVar(&o.discard, "discard", false, "with -until-eof: remove DIR when standard input ends")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), `usage: controlplane [flags]

Runs a Kubernetes API server and etcd on the loopback interface until it is interrupted. Once ready it prints a line
for the shell, which makes kubectl and every other client use it:

	export KUBECONFIG=DIR/kubeconfig

`)
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}

	terminal := os.Stderr
	if err := o.run(terminal); err != nil {
		fmt.Fprintln(terminal, "controlplane:", err)
		os.Exit(1)
	}
}

type options struct {
	dir                      string
	port                     int
	fsync, untilEOF, discard bool
	coordinated              bool
	gates                    string
}

// run reports what it does on terminal; os.Stderr becomes the log of the API server and etcd.
func (o options) run(terminal io.Writer) (err error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	context.AfterFunc(ctx, stop)   // a second signal ends the process at once
	signal.Ignore(syscall.SIGPIPE) // the reader of this process's output may have ended

	remove := o.dir == ""
	if remove {
		if o.dir, err = os.MkdirTemp("", "controlplane-"); err != nil {
			return err
		}
	}
	defer func() {
		if remove {
			err = errors.Join(err, os.RemoveAll(o.dir))
		}
	}()
	if o.untilEOF {
		var end context.CancelCauseFunc
		ctx, end = context.WithCancelCause(ctx)
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			end(io.EOF)
		}()
		defer func() { remove = remove || o.discard && context.Cause(ctx) == io.EOF }()
	}

	dir, err := datadir.Create(o.dir)
	if err != nil {
		return fmt.Errorf("directory not usable: %w", err)
	}
	unlock, err := lock(o.dir)
	if err != nil {
		return err
	}
	defer unlock()
	if o.dir, err = filepath.Abs(o.dir); err != nil {
		return err
	}
	if err := os.Chdir(o.dir); err != nil { // for etcd's socket: the path of one may have no more than 107 bytes
		return err
	}
	listener, err := listen(dir, o.port)
	if err != nil {
		return err
	}
	fmt.Fprintf(terminal, "controlplane: starting an API server on https://%v, data and log in %s\n",
		listener.Addr(), o.dir)
	log, err := redirectStderr()
	if err != nil {
		return err
	}

	s, err := start(ctx, dir, listener, o)
	if ctx.Err() != nil {
		return nil // etcd's data is safe at any instant
	} else if err != nil {
		return fmt.Errorf("%w; the end of its log:\n%s", err, log.tail())
	}
	fmt.Printf("export KUBECONFIG=%s\n", dir.Path(datadir.Kubeconfig))
	fmt.Fprintln(terminal, "controlplane: ready; interrupt it to stop")

	select {
	case <-ctx.Done():
		fmt.Fprintln(terminal, "controlplane: stopping")
		return s.stop()
	case err := <-s.failed:
		return fmt.Errorf("%w; the end of its log:\n%s", err, log.tail())
	}
}

// lock makes sure that no other process runs on dir; the kernel undoes it when this process ends.
func lock(dir string) (unlock func() error, err error) {
	f, err := os.Create(filepath.Join(dir, "lock"))
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another control plane runs in %s", dir)
	}
	return f.Close, nil
}

// listen takes the port asked for, else that of last time, else a new one.
func listen(dir *datadir.Dir, port int) (net.Listener, error) {
	if port == 0 {
		last, err := dir.Port()
		if err != nil {
			return nil, err
		}
		port, _ = strconv.Atoi(last)
	}
	if port == 0 {
		return loopback.Listen()
	}
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return nil, fmt.Errorf("%w (-port takes another)", err)
	}
	return l, nil
}

// runLog is the log file, from the beginning of this run.
type runLog struct {
	name  string
	begin int64
}

// redirectStderr replaces os.Stderr by a file: klog and etcd use it whenever they write.
func redirectStderr() (*runLog, error) {
	f, err := os.OpenFile(datadir.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	os.Stderr = f
	return &runLog{f.Name(), info.Size()}, nil
}

// tail returns the last lines of the run.
func (l *runLog) tail() []byte {
	data, err := os.ReadFile(l.name)
	if err != nil {
		return []byte(err.Error())
	}
	lines := bytes.Split(bytes.TrimSpace(data[l.begin:]), []byte("\n"))
	return bytes.Join(lines[max(0, len(lines)-15):], []byte("\n"))
}
