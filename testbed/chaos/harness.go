package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/anishathalye/porcupine"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"

	"github.com/leasehold-go/leasehold/testbed/controlplane"
	"github.com/leasehold-go/leasehold/testbed/internal/boottime"
	"github.com/leasehold-go/leasehold/testbed/internal/datadir"
	"github.com/leasehold-go/leasehold/testbed/internal/proxy"
)

const (
	storeJournal  = "store.json"
	candidatesLog = "candidates.log"

	storm = 40 * time.Second // of faults between two pauses

	// slack is added to the time within which the library promises a leader, for a busy machine.
	slack = 20 * time.Second
)

// A harness is the state of one run.
type harness struct {
	config
	chance *rand.Rand
	leases []string
	begun  time.Duration // by CLOCK_BOOTTIME

	server       *controlplane.Server
	operator     coordinationv1client.LeaseInterface
	client       *rest.Config // of operator
	dir          string       // of this run, in the control plane's
	store        *Store
	leaseHistory *leaseHistory
	members      []*member
	closers      []func() error // of all but the server, in the order of opening

	serverBusy sync.Mutex
	hands      atomic.Int64
	storms     int
	slowest    time.Duration // from the end of a storm to a leader
	slowestKey time.Duration // from the end of a storm to a write of each key's work

	mu     sync.Mutex
	faults []fault
	wrong  []violation   // found during the run
	failed chan struct{} // closed with the first of them
}

func (h *harness) say(format string, args ...any) {
	at := time.Duration(0)
	if h.begun != 0 {
		at = boottime.Now() - h.begun
	}
	fmt.Fprintf(h.out, "%8.2f s  %s\n", at.Seconds(), fmt.Sprintf(format, args...))
}

// fail records a violation that began then, ends the run, and returns errFailed.
func (h *harness) fail(lease string, since time.Duration, err error) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.wrong) == 0 {
		close(h.failed)
	}
	h.wrong = append(h.wrong, violation{lease, err.Error(), since, boottime.Now()})
	return errFailed
}

// errFailed ends a run whose records are checked nevertheless.
var errFailed = errors.New("failed")

// open starts all parts of the run except the candidates.
func (h *harness) open(ctx context.Context) (err error) {
	h.failed = make(chan struct{})
	h.leases = leasesOf(fleets[h.fleet])
	if h.server, err = controlplane.Start(ctx, controlplane.Options{Dir: h.config.dir}); err != nil {
		return err
	}
	if h.dir, err = os.MkdirTemp(filepath.Dir(h.server.Log()), "chaos-"); err != nil {
		return err
	}
	namespace, err := h.prepare(ctx)
	if err != nil {
		return err
	}

	journal, err := os.Create(filepath.Join(h.dir, storeJournal))
	if err != nil {
		return err
	}
	h.closers = append(h.closers, journal.Close)
	h.store = newStore(journal)
	socket := filepath.Join(h.dir, "store.sock")
	stop, err := h.store.serve(socket)
	if err != nil {
		return err
	}
	h.closers = append(h.closers, func() error { stop(); return nil })

	h.leaseHistory = newLeaseHistory()
	following, cancel := context.WithCancel(context.Background())
	wait, err := h.leaseHistory.follow(following, filepath.Join(filepath.Dir(h.server.Log()), datadir.EtcdSocket),
		namespace)
	if err != nil {
		cancel()
		return err
	}
	h.closers = append(h.closers, func() error { cancel(); return wait() })

	log, err := os.Create(filepath.Join(h.dir, candidatesLog))
	if err != nil {
		return err
	}
	h.closers = append(h.closers, log.Close)
	return h.startProxies(namespace, socket, log)
}

// prepare creates a namespace and grants the candidates the rights there that leasehold and client-go need.
func (h *harness) prepare(ctx context.Context) (namespace string, err error) {
	h.client = h.server.Config()
	h.client.QPS = -1
	client, err := kubernetes.NewForConfig(h.client)
	if err != nil {
		return "", err
	}
	ns, err := client.CoreV1().Namespaces().Create(ctx,
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "chaos-"}}, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	h.operator = client.CoordinationV1().Leases(ns.Name)
	for users, verbs := range verbs {
		if _, err := client.RbacV1().Roles(ns.Name).Create(ctx, &rbacv1.Role{
			ObjectMeta: metav1.ObjectMeta{Name: users},
			Rules: []rbacv1.PolicyRule{
				{APIGroups: []string{"coordination.k8s.io"}, Resources: []string{"leases"}, Verbs: verbs},
			},
		}, metav1.CreateOptions{}); err != nil {
			return "", err
		}
		if _, err := client.RbacV1().RoleBindings(ns.Name).Create(ctx, &rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: users},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: users},
			Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: users}},
		}, metav1.CreateOptions{}); err != nil {
			return "", err
		}
	}
	return ns.Name, nil
}

// Groups of users: candidates for leases, and members that share out keys.
const (
	candidates = "candidates"
	sharers    = "sharers"
)

// verbs are what they may do with Leases. Update is for client-go.
var verbs = map[string][]string{
	candidates: {"get", "watch", "patch", "create", "update"},
	sharers:    {"get", "list", "watch", "patch", "create", "delete"},
}

func (s spec) users() string {
	if s.Kind == sharer {
		return sharers
	}
	return candidates
}

// startProxies starts a proxy for each candidate.
func (h *harness) startProxies(namespace, socket string, log *os.File) error {
	target, err := url.Parse(h.client.Host)
	if err != nil {
		return err
	}
	files, err := datadir.Open(filepath.Dir(h.server.Log()))
	if err != nil {
		return err
	}
	for _, s := range fleets[h.fleet] {
		network, err := proxy.New(target.Host)
		if err != nil {
			return err
		}
		h.closers = append(h.closers, network.Close)
		cfg := h.server.UserConfig(s.Name, s.users())
		cfg.Host = "https://" + network.Addr
		s.Namespace, s.Store = namespace, socket
		file := filepath.Join(filepath.Base(h.dir), s.Name+".kubeconfig")
		s.Kubeconfig = files.Path(file)
		if err := files.WriteKubeconfig(file, cfg); err != nil {
			return err
		}
		h.members = append(h.members, &member{spec: s, network: network, dir: h.dir, log: log})
	}
	return nil
}

// disturbAndStop starts the candidates, injects faults in storms, and stops the candidates one after the other.
func (h *harness) disturbAndStop(ctx context.Context) (err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-h.failed:
			cancel(errFailed)
		case <-ctx.Done():
		}
	}()
	h.begun = boottime.Now()
	defer func() {
		for _, m := range h.members {
			if m.process != nil {
				err = errors.Join(err, m.end(syscall.SIGKILL))
			}
		}
	}()
	for _, m := range h.members {
		if err := m.start(); err != nil {
			return err
		}
	}
	supervised := make(chan struct{})
	var supervisor sync.WaitGroup
	supervisor.Go(func() { h.supervise(supervised) })
	defer supervisor.Wait()
	defer close(supervised)

	if err := h.awaitLeaders(ctx); err != nil {
		return err
	}
	for until := h.begun + h.duration; boottime.Now() < until; {
		h.storms++
		stormy, over := context.WithTimeout(ctx, min(storm, until-boottime.Now()))
		h.config.disturb(h, stormy)
		over()
		if err := h.awaitLeaders(ctx); err != nil {
			return err
		}
	}
	return h.stopLeaders(ctx)
}

// supervise continues processes that froze themselves too late, and fails the run if one exits by itself.
func (h *harness) supervise(until <-chan struct{}) {
	for tick := time.NewTicker(500 * time.Millisecond); ; {
		select {
		case <-tick.C:
		case <-until:
			tick.Stop()
			return
		}
		for _, m := range h.members {
			m.wake()
			if err := m.failed(); err != nil {
				h.fail(m.Lease, boottime.Now(), err)
				return
			}
		}
	}
}

// awaitLeaders waits until each lease has a leader, and each key of a group an owner, once all faults are undone.
func (h *harness) awaitLeaders(ctx context.Context) error {
	from := boottime.Now()
	for _, lease := range h.leases {
		took, err := h.awaitLeader(ctx, lease, from)
		if err != nil {
			return err
		}
		if h.isGroup(lease) {
			h.slowestKey = max(h.slowestKey, took)
			h.say("%s: all keys worked on %v after the last fault", lease, short(took))
		} else {
			h.slowest = max(h.slowest, took)
			h.say("%s: led %v after the last fault", lease, short(took))
		}
	}
	sleep(ctx, time.Second)
	return context.Cause(ctx)
}

// awaitLeader waits for a leader who was live after from, and returns how long after that was. Of a group it waits for
// the work of each key.
func (h *harness) awaitLeader(ctx context.Context, lease string, from time.Duration) (time.Duration, error) {
	// A lost claim, a fresh standby or a deletion may cost the duration once more; the operator may have lengthened it.
	limit := 2*(longest(fleets[h.fleet])+2*time.Second) + time.Second + slack
	if !ours(h.members, lease) {
		limit += time.Minute // client-go notices dead connections after 45 s
	}
	took := time.Duration(0)
	for _, job := range h.jobs(lease) {
		for w := h.store.leader(job); w.Looked <= from; w = h.store.leader(job) {
			if boottime.Now() >= from+limit {
				return 0, h.fail(job, from, fmt.Errorf("nobody led within %v after the last fault", limit))
			}
			sleep(ctx, 5*time.Millisecond)
			if ctx.Err() != nil {
				return 0, context.Cause(ctx)
			}
		}
		took = max(took, h.store.leader(job).Looked-from)
	}
	return took, nil
}

// ours reports whether any of the candidates for a lease is leasehold's.
func ours(members []*member, lease string) bool {
	return slices.ContainsFunc(members, func(m *member) bool { return m.Lease == lease && m.Kind != elector })
}

// stopLeaders stops the leader of each lease until no candidate is left. Each candidate of leasehold must lead in
// turn, and exit when it is terminated. Of a group, those that are left must have all keys.
func (h *harness) stopLeaders(ctx context.Context) error {
	left := slices.Clone(h.members)
	for len(left) > 0 {
		lease := left[0].Lease
		if !ours(left, lease) {
			if err := left[0].end(syscall.SIGTERM); err != nil {
				return h.fail(lease, boottime.Now(), err)
			}
			left = left[1:]
			continue
		}
		if _, err := h.awaitLeader(ctx, lease, boottime.Now()); err != nil {
			return err
		}
		leader := h.leader(lease)
		i := slices.IndexFunc(left, func(m *member) bool { return m.Name == leader })
		if i < 0 && h.isGroup(lease) {
			i = 0 // another has just become the one that assigns
		}
		if i < 0 {
			return h.fail(lease, boottime.Now(), fmt.Errorf("%s leads, but was stopped", leader))
		}
		h.say("%s: stopped for good", left[i].Name)
		if err := left[i].end(syscall.SIGTERM); err != nil {
			return h.fail(lease, boottime.Now(), err)
		}
		left = slices.Delete(left, i, i+1)
	}
	return nil
}

// check reads all records of the run and checks them.
func (h *harness) check() (*result, history, error) {
	if err := h.catchUp(); err != nil {
		return nil, history{}, err
	}
	all := history{start: h.begun, faults: h.faults}
	all.events, all.pages = h.leaseHistory.all()
	if err := all.read(h.dir); err != nil {
		return nil, history{}, err
	}
	v := check(all)
	v.violations = append(h.wrong, v.violations...)
	lockable := map[porcupine.CheckResult]int{} // keys, by what porcupine says
	for _, lease := range slices.Sorted(maps.Keys(v.byLease)) {
		if len(operations(v.byLease[lease])) == 0 {
			continue // all are client-go's
		}
		result, info := linearize(v.byLease[lease])
		if isKey(lease) {
			lockable[result]++
		} else {
			h.say("porcupine on %s: %s", lease, result)
		}
		if result != porcupine.Illegal {
			continue
		}
		file := filepath.Join(h.dir, strings.ReplaceAll(lease, "/", "-")+".html")
		v.violate(lease, 0, 0, "porcupine finds no order of what leaders did in which the lease was a lock; see %s",
			filepath.Base(file))
		if err := porcupine.VisualizePath(lock, info, file); err != nil {
			return nil, history{}, err
		}
	}
	if len(lockable) > 0 {
		h.say("porcupine on keys: %s", counts(lockable))
	}
	return v, all, nil
}

// catchUp waits until the history of the leases includes their present state.
func (h *harness) catchUp() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	list, err := h.operator.List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, l := range list.Items {
		for fmt.Sprint(h.leaseHistory.last(l.Name).Version) != l.ResourceVersion {
			sleep(ctx, 10*time.Millisecond)
			if ctx.Err() != nil {
				return fmt.Errorf("the history of %s ends with version %d, want %s", l.Name,
					h.leaseHistory.last(l.Name).Version, l.ResourceVersion)
			}
		}
	}
	return nil
}

// report prints a summary of the run.
func (h *harness) report(v *result, all history) {
	for i, x := range v.violations {
		const most = 5
		if i == most {
			fmt.Fprintf(h.out, "\n%d violations more\n", len(v.violations)-most)
			break
		}
		fmt.Fprintf(h.out, "\nVIOLATION in %s, seed %d: %s\n", x.Lease, h.seed, x.Text)
		if x.From != 0 {
			fmt.Fprint(h.out, all.around(x.Lease, x.From, x.To, v.byLease[x.Lease]))
		}
	}
	for _, x := range v.excused {
		fmt.Fprintf(h.out, "excused in %s at %.2f s: %s\n", x.Lease, (x.From - h.begun).Seconds(), x.Text)
	}
	faults := map[string]int{}
	for _, f := range h.faults {
		faults[f.Kind]++
	}
	w := tabwriter.NewWriter(h.out, 0, 8, 2, ' ', 0)
	defer w.Flush()
	row := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	fmt.Fprintln(h.out)
	row("seed", "%d, %.1f minutes, %d storms", h.seed, (boottime.Now() - h.begun).Minutes(), h.storms)
	row("faults", "%d: %s", len(h.faults), counts(faults))
	row("sessions", "%d: %s; %s", sum(v.sessions), counts(v.sessions), counts(v.byKind))
	row("handovers", "%d", v.handovers)
	row("losses", "%d: %s", sum(v.losses), counts(v.losses))
	row("looks at live sessions", "%d", v.looks)
	row("led after the last fault", "within %v", short(h.slowest))
	row("late writes",
		"%d tried, %d fenced, %d before the new leader wrote; %d went through without fencing; %d of client-go's",
		v.late, v.fenced, v.early, v.unfenced, v.lateElect)
	row("overlaps", "%d of leasehold, %d of client-go (longest %v), %d made by hand (longest %v)",
		v.overlaps[oursFault],
		v.overlaps[theirsFault], short(v.longest[theirsFault]), v.overlaps[byHand], short(v.longest[byHand]))
	if g := v.groups; g.sessions > 0 {
		row("groups", "%d sessions of keys: %s; %d moves; %d tables in %d epochs; all keys worked on within %v",
			g.sessions, counts(g.ends), g.moves, g.tables, g.epochs, short(h.slowestKey))
	}
	row("violations", "%d", len(v.violations))
}

func sum[K comparable](m map[K]int) (n int) {
	for _, c := range m {
		n += c
	}
	return n
}

// counts lists the entries of m with their numbers.
func counts[K ~string](m map[K]int) string {
	var b bytes.Buffer
	for i, key := range slices.Sorted(maps.Keys(m)) {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%d %s", m[key], key)
	}
	return b.String()
}

// close stops everything, and moves the files of the run out of the temporary directory if they are to be kept.
func (h *harness) close(keep bool) (err error) {
	for _, f := range slices.Backward(h.closers) {
		err = errors.Join(err, f())
	}
	if keep && h.dir != "" && h.config.dir == "" {
		kept := filepath.Join(os.TempDir(), filepath.Base(h.dir))
		err = errors.Join(err, os.Rename(h.dir, kept))
		fmt.Fprintln(h.out, "journals and logs are in", kept)
	}
	if h.server != nil {
		err = errors.Join(err, h.server.Stop())
	}
	return err
}
