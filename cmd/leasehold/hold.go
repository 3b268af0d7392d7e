package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"github.com/leasehold-go/leasehold"
)

// timing is the times of a lease.
type timing struct {
	duration, renewDeadline, renewInterval time.Duration
}

func (t *timing) flags(flags *pflag.FlagSet) {
	flags.DurationVar(&t.duration, "duration", 15*time.Second, "how long others leave the lease to a holder that does not renew it, in whole seconds")
	flags.DurationVar(&t.renewDeadline, "renew-deadline", 0, "how long a holder trusts its lease after it was renewed (default 0.8 of the duration)")
	flags.DurationVar(&t.renewInterval, "renew-interval", 0, "how often the lease is renewed (default a fifth of the duration)")
}

// complete fills in the defaults, those of the library.
func (t *timing) complete() {
	if t.renewDeadline == 0 {
		t.renewDeadline = t.duration / 10 * 8
	}
	if t.renewInterval == 0 {
		t.renewInterval = t.duration / 5
	}
}

func (t *timing) options() []leasehold.Option {
	return []leasehold.Option{
		leasehold.WithDuration(t.duration), leasehold.WithRenewDeadline(t.renewDeadline), leasehold.WithRenewInterval(t.renewInterval),
	}
}

// holding is how run and claim hold a lease.
type holding struct {
	timing
	identity        string
	create          createMode
	labels          map[string]string
	fieldManager    string
	deleteOnRelease bool
	wait            time.Duration
	noWait          bool
	listen          string
}

func (h *holding) flags(flags *pflag.FlagSet) {
	h.timing.flags(flags)
	flags.StringVarP(&h.identity, "identity", "i", "", "who the Lease names as its holder (default <$POD_NAME or host name>_<uuid>)")
	flags.DurationVar(&h.wait, "wait", 0, "how long to wait for the lease; then the exit code is 124 (default for ever)")
	flags.BoolVar(&h.noWait, "no-wait", false, "do not wait for a lease that somebody holds; the exit code is 124 then")
	flags.TextVar(&h.create, "create", createMode(leasehold.AutoCreate), "`when` to create the Lease: auto (where there is none), new (or fail), never")
	flags.StringToStringVar(&h.labels, "labels", nil, "labels to give the Lease, as team=storage,tier=1")
	flags.StringVar(&h.fieldManager, "field-manager", "leasehold", "under which name the API server keeps track of changes")
	flags.BoolVar(&h.deleteOnRelease, "delete-on-release", false, "delete the Lease after it was released")
	flags.StringVar(&h.listen, "listen", "", "address of an HTTP server with /healthz, for a liveness probe, and /leases, the state as JSON")
}

// complete returns the options for the library, checked, and starts the HTTP server.
func (h *holding) complete(t *tool, lease string) ([]leasehold.Option, error) {
	h.timing.complete()
	opts := append(h.timing.options(), leasehold.WithLease(lease), leasehold.WithCreateMode(leasehold.CreateMode(h.create)),
		leasehold.WithFieldManager(h.fieldManager), leasehold.WithLabels(h.labels), leasehold.WithLogger(t.log))
	if h.identity != "" {
		opts = append(opts, leasehold.WithIdentity(h.identity))
	}
	if h.deleteOnRelease {
		opts = append(opts, leasehold.WithDeleteOnRelease())
	}
	switch {
	case h.wait < 0:
		return nil, usagef("--wait %v: want a positive time", h.wait)
	case h.wait > 0 && h.noWait:
		return nil, usagef("--wait and --no-wait: want one of them")
	}
	if err := check(opts); err != nil {
		return nil, usageError{err}
	}
	where, err := t.cluster.options()
	if err != nil {
		return nil, err
	}
	if h.listen != "" {
		monitor := new(leasehold.Monitor)
		opts = append(opts, leasehold.WithMonitor(monitor))
		if err := serve(h.listen, monitor); err != nil {
			return nil, err
		}
	}
	return append(opts, where...), nil
}

// check returns what is wrong with opts. Sessions panics with it, and does nothing else before it is ranged over.
func check(opts []leasehold.Option) (err error) {
	defer func() {
		switch fault := recover().(type) {
		case nil:
		case error:
			err = fault
		default:
			panic(fault)
		}
	}()
	leasehold.Sessions(context.Background(), opts...)
	return nil
}

// serve shows the state of the leases until the process ends.
func serve(address string, monitor *leasehold.Monitor) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("--listen: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("/leases", monitor)
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, req *http.Request) {
		if err := monitor.Check(req); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go server.Serve(listener)
	return nil
}

// createMode is a leasehold.CreateMode as a flag.
type createMode leasehold.CreateMode

var createModes = [...]string{leasehold.AutoCreate: "auto", leasehold.CreateNew: "new", leasehold.UseExisting: "never"}

func (m createMode) MarshalText() ([]byte, error) { return []byte(createModes[m]), nil }

func (m *createMode) UnmarshalText(text []byte) error {
	for mode, name := range createModes {
		if name == string(text) {
			*m = createMode(mode)
			return nil
		}
	}
	return errors.New("want auto, new or never")
}

// errNotInTime is why the wait for a lease ended.
var errNotInTime = errors.New("not acquired in time")

// A stopped is why a campaign ended: the tool was asked to stop.
type stopped struct{ signal os.Signal }

func (s stopped) Error() string { return "stopped: " + s.signal.String() }

// exit is the code of a process that the signal ended.
func (s stopped) exit() error {
	number, _ := s.signal.(syscall.Signal)
	return exitWith(exitSignal+int(number), nil)
}

// notAcquired returns how the tool ends that did not get the lease because of err.
func (h *holding) notAcquired(err error) error {
	var asked stopped
	switch {
	case errors.As(err, &asked):
		return asked.exit()
	case errors.Is(err, errNotInTime):
		return exitWith(exitNotAcquired, fmt.Errorf("the lease was not acquired within %v", h.wait))
	case errors.Is(err, leasehold.ErrHeld):
		return exitWith(exitNotAcquired, err)
	}
	return err
}
