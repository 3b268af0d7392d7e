package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	coordinationv1 "k8s.io/api/coordination/v1"

	"github.com/leasehold-go/leasehold"
)

// timing holds the times of a lease.
type timing struct {
	duration, renewDeadline, renewInterval time.Duration
}

func (t *timing) flags(flags *pflag.FlagSet) {
	flags.DurationVar(&t.duration, "duration", 15*time.Second,
		"how long others wait before they acquire a lease that its holder does not renew, in whole seconds")
	flags.DurationVar(&t.renewDeadline, "renew-deadline", 0,
		"how long a holder trusts its lease after a renewal (default 0.8 of the duration)")
	flags.DurationVar(&t.renewInterval, "renew-interval", 0,
		"how often to renew the lease (default a fifth of the duration)")
}

// complete sets what was not given to the defaults of the library.
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
		leasehold.WithDuration(t.duration),
		leasehold.WithRenewDeadline(t.renewDeadline),
		leasehold.WithRenewInterval(t.renewInterval),
	}
}

// holding has the flags by which run and claim wait for a lease and hold it.
type holding struct {
	timing
	identity        string
	create          createMode
	labels          map[string]string
	fieldManager    string
	deleteOnRelease bool
	wait            time.Duration
	noWait          bool
	heldExitCode    int
	listen          string
	advertise       string
	priority        int
	yield           bool
	slots           int

	monitor              *leasehold.Monitor
	slotted, prioritized func() bool // report whether --slots and --priority were given

	look func(context.Context) (*coordinationv1.Lease, error) // reads the Lease
}

func (h *holding) flags(flags *pflag.FlagSet) {
	h.timing.flags(flags)
	h.slotted = func() bool { return flags.Changed("slots") }
	h.prioritized = func() bool { return flags.Changed("priority") }
	flags.StringVarP(&h.identity, "identity", "i", "",
		"the holder to write into the Lease (default <$POD_NAME or host name>_<uuid>)")
	flags.DurationVar(&h.wait, "wait", 0,
		"how long to wait for the lease; at most its duration longer if its holder stopped renewing it "+
			"(default no limit)")
	flags.BoolVar(&h.noWait, "no-wait", false,
		"fail if the lease has a holder; to acquire it after a crash of the holder, use --wait")
	flags.IntVarP(&h.heldExitCode, "held-exit-code", "E", exitNotAcquired,
		"the exit code when another holds the lease and --no-wait or --wait ends the attempt")
	flags.TextVar(&h.create, "create", createMode(leasehold.AutoCreate),
		"`when` to create the Lease: auto (if there is none), new (fail if there is one), never")
	flags.StringToStringVar(&h.labels, "labels", nil, "labels to give the Lease, as team=storage,tier=1")
	flags.StringVar(&h.fieldManager, "field-manager", "leasehold",
		"the name under which the API server tracks our changes")
	flags.BoolVar(&h.deleteOnRelease, "delete-on-release", false, "delete the Lease after releasing it")
	flags.IntVar(&h.slots, "slots", 0,
		"how many may hold a lease at once: LEASE-0, LEASE-1 and so on, of which this process takes one (default "+
			"one lease)")
	flags.StringVar(&h.advertise, "advertise", "",
		"the address to publish while holding the lease, as $POD_IP:8080; get -o wide shows it")
	flags.IntVar(&h.priority, "priority", 0,
		"a released lease goes to the standby with the highest priority (default none)")
	flags.BoolVar(&h.yield, "yield", false, "make way when a candidate of higher priority stands by")
	flags.StringVar(&h.listen, "listen", "",
		"address of an HTTP server with /healthz for a liveness probe, /metrics for Prometheus, and /leases for JSON")
}

// complete checks the flags, starts the HTTP server, and returns the options for the library.
func (h *holding) complete(t *tool, lease string) ([]leasehold.Option, error) {
	h.timing.complete()
	opts := append(h.timing.options(), leasehold.WithLease(lease),
		leasehold.WithCreateMode(leasehold.CreateMode(h.create)),
		leasehold.WithFieldManager(h.fieldManager), leasehold.WithLabels(h.labels), leasehold.WithLogger(t.log))
	if h.identity != "" {
		opts = append(opts, leasehold.WithIdentity(h.identity))
	}
	if h.slotted() {
		opts = append(opts, leasehold.WithSlots(h.slots))
	}
	if h.prioritized() {
		opts = append(opts, leasehold.WithPriority(h.priority))
	}
	if h.yield {
		opts = append(opts, leasehold.WithYield())
	}
	if h.advertise != "" {
		opts = append(opts, leasehold.WithAdvertise(h.advertise))
	}
	if h.deleteOnRelease {
		opts = append(opts, leasehold.WithDeleteOnRelease())
	}
	switch {
	case h.wait < 0:
		return nil, usagef("--wait %v: want a positive time", h.wait)
	case h.wait > 0 && h.noWait:
		return nil, usagef("--wait and --no-wait are mutually exclusive")
	case h.heldExitCode < 0 || h.heldExitCode > 255:
		return nil, usagef("--held-exit-code %d: want 0 to 255", h.heldExitCode)
	}
	if err := check(opts); err != nil {
		return nil, usageError{err}
	}
	where, err := t.cluster.options()
	if err != nil {
		return nil, err
	}
	h.monitor = new(leasehold.Monitor)
	h.look = func(ctx context.Context) (*coordinationv1.Lease, error) { return h.firstFree(ctx, t, lease) }
	if h.listen != "" {
		if err := serve(h.listen, h.monitor); err != nil {
			return nil, err
		}
	}
	return append(append(opts, leasehold.WithMonitor(h.monitor)), where...), nil
}

// firstFree returns the Lease or, with --slots, that of the first slot that is free or expired, else of the first slot.
func (h *holding) firstFree(ctx context.Context, t *tool, lease string) (*coordinationv1.Lease, error) {
	if !h.slotted() {
		return t.get(ctx, lease)
	}
	var first *coordinationv1.Lease
	for slot := range h.slots {
		l, err := t.get(ctx, fmt.Sprintf("%s-%d", lease, slot))
		if err != nil {
			return nil, err
		}
		if holderOf(l.Spec) == "" || h.expired(l.Spec, time.Now()) {
			return l, nil
		}
		if first == nil {
			first = l
		}
	}
	return first, nil
}

// check returns the error about invalid opts. Sessions panics with it, and does nothing else before it is ranged over.
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

// errNotInTime is the cause of a wait for a lease that --wait ended.
var errNotInTime = errors.New("not acquired in time")

// A stopped is the cause of a campaign that ended because the tool was asked to stop.
type stopped struct{ signal os.Signal }

func (s stopped) Error() string { return "stopped: " + s.signal.String() }

// exit returns the exit code of a process that the signal ended.
func (s stopped) exit() error {
	number, _ := s.signal.(syscall.Signal)
	return exitWith(exitSignal+int(number), nil)
}

// limit cancels a wait for the lease after --wait, until the function that it returns is called. If the holder has
// stopped renewing the lease by then, it waits until the lease expires: this process has to see it unchanged for its
// duration.
func (h *holding) limit(cancel context.CancelCauseFunc) (stop func()) {
	if h.wait == 0 {
		return func() {}
	}
	ctx, end := context.WithCancel(context.Background())
	var over sync.Once // either the wait is cancelled or it is not
	go func() {
		select {
		case <-time.After(h.wait):
			h.awaitExpiry(ctx)
			over.Do(func() { cancel(errNotInTime) })
		case <-ctx.Done():
		}
	}()
	return func() {
		over.Do(func() {})
		end()
	}
}

// awaitExpiry returns at once if the lease is not expired by its own times, else when it is renewed, or acquired by
// another, or could have been acquired by this process.
func (h *holding) awaitExpiry(ctx context.Context) {
	l := h.read(ctx)
	if l == nil || !h.expired(l.Spec, time.Now()) {
		return
	}
	end := time.Now().Add(h.durationOf(l.Spec) + expirySlack)
	for ctx.Err() == nil && time.Now().Before(end) {
		for _, s := range h.monitor.Leases() {
			read := s.ResourceVersion != "" && s.Name == l.Name // by the campaign
			if s.Holder != nil && s.Holder.Identity == s.Identity {
				continue // acquired just now
			}
			if read && (s.Holder == nil || !s.Holder.RenewTime.Equal(valueOf(l.Spec.RenewTime).Time)) {
				return
			}
		}
		sleep(ctx, 50*time.Millisecond)
	}
}

// expirySlack is how long after the expiry of a lease the attempt to acquire it may take.
const expirySlack = time.Second

// read returns the Lease, nil if it cannot be read soon.
func (h *holding) read(ctx context.Context) *coordinationv1.Lease {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	l, err := h.look(ctx)
	if err != nil {
		return nil
	}
	return l
}

// expired reports whether the lease has expired by its own times and this machine's clock.
func (h *holding) expired(s coordinationv1.LeaseSpec, now time.Time) bool {
	return holderOf(s) != "" && now.Sub(valueOf(s.RenewTime).Time) > h.durationOf(s)
}

// durationOf returns how long others must see a lease unchanged before they may acquire it.
func (h *holding) durationOf(s coordinationv1.LeaseSpec) time.Duration {
	if seconds := valueOf(s.LeaseDurationSeconds); seconds > 0 {
		return time.Duration(seconds) * time.Second
	}
	return h.duration
}

// sleep returns after d, or when ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// notAcquired returns the error and exit code of the tool if it did not acquire the lease because of err.
func (h *holding) notAcquired(err error) error {
	var asked stopped
	switch {
	case errors.As(err, &asked):
		return asked.exit()
	case errors.Is(err, leasehold.ErrHeld):
		l := h.read(context.Background())
		switch who := h.heldBy(l); {
		case who == "":
		case !h.slotted():
			err = fmt.Errorf("leasehold: lease %s", who)
		case h.expired(l.Spec, time.Now()):
			err = fmt.Errorf("%w; %s", err, who)
		}
		return exitWith(h.heldExitCode, err)
	case errors.Is(err, errNotInTime):
		err = fmt.Errorf("the lease was not acquired within %v", h.wait)
		who := h.heldBy(h.read(context.Background()))
		if who == "" {
			return exitWith(exitNotAcquired, err)
		}
		return exitWith(h.heldExitCode, fmt.Errorf("%w: %s", err, who))
	}
	return err
}

// heldBy returns a sentence about the holder of l and when the lease can be acquired; "" if it has none. l may be nil.
func (h *holding) heldBy(l *coordinationv1.Lease) string {
	if l == nil || holderOf(l.Spec) == "" {
		return ""
	}
	now := time.Now()
	text := fmt.Sprintf("held by %q", holderOf(l.Spec))
	if h.slotted() {
		text = l.Name + " " + text
	}
	renewed := age(l.Spec.RenewTime, now)
	switch {
	case !h.expired(l.Spec, now):
		return fmt.Sprintf("%s, renewed %s ago", text, renewed)
	case l.Spec.RenewTime == nil:
		text += ", never renewed"
	default:
		text += ", not renewed for " + renewed
	}
	d := h.durationOf(l.Spec)
	return fmt.Sprintf("%s; free in at most %v with --wait %v", text, d, d+expirySlack)
}
