package leasehold

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/cenkalti/backoff/v4"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/rest"
)

// An Option says how to campaign for a lease. The only required one is WithLease.
type Option func(*options)

type options struct {
	name, namespace string
	slots           int // 0 for no slots
	slot            int // of a campaign
	identity        string
	fieldManager    string
	client          *userClient
	config          *rest.Config
	duration        time.Duration
	renewDeadline   time.Duration
	renewInterval   time.Duration
	beat            time.Duration // 0 for none
	createMode      CreateMode
	newBackOff      func() backoff.BackOff
	log             *slog.Logger
	overrun         func(Session)
	labels          map[string]string
	owner           *metav1.OwnerReference
	advertise       string
	priority        int
	prioritized     bool
	yield           bool
	deleteOnRelease bool
	reclaim         bool
	recorder        eventRecorder
	monitor         *Monitor
	err             *error
	group           groupOptions

	faults []error // what is wrong with the options themselves
	hooks  hooks
}

// hooks are what tests replace.
type hooks struct {
	clock     clock
	chance    func(n time.Duration) time.Duration // a random duration in [0, n); called by several goroutines
	shareFrom int                                 // from how many campaigns on they share a watch
	memory    *leaseMemory
	// wrap wraps the client of a campaign's own requests; nil for none.
	wrap func(Leases) Leases
}

// WithLease names the Lease. It is required.
func WithLease(name string) Option { return func(o *options) { o.name = name } }

// WithNamespace says in which namespace the Lease is. The default is that of the pod's service
// account, outside a cluster that of the kubeconfig's context, else "default".
func WithNamespace(namespace string) Option {
	return func(o *options) {
		o.namespace = namespace
		if namespace == "" {
			o.fault("WithNamespace: the namespace is empty")
		}
	}
}

// WithClient makes all requests through client, with its connections and rate limits. WithRESTConfig
// is better where there is a choice: a client that is shared can keep renewals waiting, and one of client-go takes 45 s
// to replace a connection that has gone dead, which is longer than the default duration. One client for all campaigns
// of a process lets those with the same renew interval share a watch.
//
// In a group (Spread, Join) the client also needs the method List of client-go: without it a member never assigns keys.
//
// A client of client-go sends at most 5 requests a second unless its configuration says otherwise (QPS), and each
// leader sends one about every fifth of the lease's duration: 5.3 a second at a duration of 1 s. Set QPS to -1, or to
// what all leases of the client need.
//
// Every client of client-go with a method Leases is one, as what clientset.CoordinationV1() returns.
func WithClient[L Leases](client interface{ Leases(namespace string) L }) Option {
	return func(o *options) {
		if client == nil {
			o.fault("WithClient: the client is nil")
			return
		}
		o.client = &userClient{client, func(namespace string) Leases { return client.Leases(namespace) }}
	}
}

// WithRESTConfig connects as config says, with a connection of its own that is not limited by
// config's QPS, Burst, RateLimiter or Timeout. Campaigns of a process share it if their configurations
// are equal, down to the very functions in them, and their renew intervals are. The default is the
// in-cluster configuration, outside a cluster the kubeconfig that kubectl would use.
func WithRESTConfig(config *rest.Config) Option {
	return func(o *options) {
		o.config = config
		if config == nil {
			o.fault("WithRESTConfig: the config is nil")
		}
	}
}

// WithIdentity says who the Lease names as its holder. The default is <POD_NAME or host
// name>_<uuid>, fresh for every campaign. Two candidates with the same identity never lead together,
// but people cannot tell them apart.
func WithIdentity(identity string) Option {
	return func(o *options) {
		o.identity = identity
		if identity == "" {
			o.fault("WithIdentity: the identity is empty")
		}
	}
}

// WithDuration says how long others leave the lease to a holder that does not renew it: whole
// seconds, at least one; 15 s by default. The renew deadline and interval follow from it unless they are
// given too. Where client-go's electors compete for the same Lease it should be 10 s at least, because they
// tell one renewal from the next only by the second: at 5 s no clock may run faster than another.
func WithDuration(d time.Duration) Option { return func(o *options) { o.duration = d } }

// WithRenewDeadline says how long a holder trusts its lease after the start of the last write that
// succeeded: 0.8 of the duration by default, at most 0.9 of it. The rest of the duration is a margin for
// clocks that run at different rates, and for the work to stop.
func WithRenewDeadline(d time.Duration) Option { return func(o *options) { o.renewDeadline = d } }

// WithRenewInterval says how long after the start of a renewal the next one begins: a fifth of the
// duration by default, at least 10 ms, at most half of the renew deadline.
func WithRenewInterval(d time.Duration) Option { return func(o *options) { o.renewInterval = d } }

// A CreateMode says what a campaign does about a Lease that does or does not exist when it begins.
type CreateMode int

const (
	// AutoCreate uses the Lease, and creates it where there is none. It is the default.
	AutoCreate CreateMode = iota
	// CreateNew ends the campaign with ErrExists if there is such a Lease. Once the campaign has
	// created it, it goes on as with AutoCreate.
	CreateNew
	// UseExisting ends the campaign with ErrNotFound if there is no such Lease. If it is deleted
	// later, the campaign waits for it to come back.
	UseExisting
)

// WithCreateMode says what to do about a Lease that does or does not exist.
func WithCreateMode(mode CreateMode) Option { return func(o *options) { o.createMode = mode } }

// WithFieldManager sets the field manager under which the API server tracks our changes: "leasehold" by
// default, at most 128 printable characters. One name for all candidates keeps the Lease small.
func WithFieldManager(name string) Option { return func(o *options) { o.fieldManager = name } }

// WithLabels gives the Lease these labels when it is created and each time it is acquired. Others'
// labels stay. In a group (Spread, Join) the table and the sets of keys get them when they are created.
func WithLabels(labels map[string]string) Option {
	return func(o *options) { o.labels = maps.Clone(labels) }
}

// WithOwner makes owner an owner of the Lease when it is created and each time it is acquired, so that
// Kubernetes deletes the Lease with it. Others' owners stay. In a group (Spread, Join) only the member's own Lease has
// the owner, because the table and the sets of keys are to outlive each process.
func WithOwner(owner metav1.OwnerReference) Option {
	return func(o *options) { o.owner = &owner }
}

// WithDeleteOnRelease deletes the Lease after it was released, if nobody has taken it by then. It is not
// deleted when it was lost. Fencing tokens keep growing. It needs the right to delete the Lease.
//
// A process that polls with TryAcquire, and saw the lease held before, cannot tell this from a deletion by hand, unless
// its own session of TryAcquire was released: it waits for the duration.
func WithDeleteOnRelease() Option { return func(o *options) { o.deleteOnRelease = true } }

// WithReclaim acquires at once a lease that is held by our identity, instead of waiting until it
// expires. It is for identities that are unique by construction, as the name of a
// StatefulSet's pod: no other process that has the identity may be running, not even for as long as it
// takes to stop. A lease that another loop or call of this process has claimed, holds or has lost is left to that, for
// the duration at most after it was last renewed. It needs WithIdentity.
func WithReclaim() Option { return func(o *options) { o.reclaim = true } }

// WithEventRecorder records Kubernetes Events about the Lease, as client-go does: with the reason
// LeaderElection, "<identity> became leader" and "<identity> stopped leading". In a group (Spread, Join) they are about
// the member's own Lease.
//
// The recorder is client-go's, of tools/record.
func WithEventRecorder(recorder interface {
	Eventf(object runtime.Object, eventtype, reason, messageFmt string, args ...any)
}) Option {
	return func(o *options) {
		o.recorder = recorder
		if recorder == nil {
			o.fault("WithEventRecorder: the recorder is nil")
		}
	}
}

type eventRecorder interface {
	Eventf(object runtime.Object, eventtype, reason, messageFmt string, args ...any)
}

// WithOverrun calls f, once and on a goroutine of its own, for a session whose body is still running
// when its lease may be somebody else's: the duration after the start of the last renewal that
// succeeded. By then its context was cancelled for some time. The default is an error in the log.
// The loop waits for f to return.
func WithOverrun(f func(Session)) Option {
	return func(o *options) {
		o.overrun = f
		if f == nil {
			o.fault("WithOverrun: the function is nil")
		}
	}
}

// WithBackOff sets the delays between failed attempts; each goroutine that makes requests has a policy
// of its own. The default starts at 50 ms and doubles up to 650 ms, with jitter. A policy that returns
// backoff.Stop starts over: only the context ends a campaign. Delays of less than 10 ms are
// lengthened to that.
func WithBackOff(newBackOff func() backoff.BackOff) Option {
	return func(o *options) {
		o.newBackOff = newBackOff
		if newBackOff == nil {
			o.fault("WithBackOff: the function is nil")
		}
	}
}

// WithLogger sends the log to logger; slog.Default() by default.
func WithLogger(logger *slog.Logger) Option {
	return func(o *options) {
		o.log = logger
		if logger == nil {
			o.fault("WithLogger: the logger is nil")
		}
	}
}

// WithError stores in *err why the loop ended, on the goroutine of the loop and before it is left:
// nil after break and return, context.Cause(ctx) if ctx ended it, or the reason why the campaign could not
// run: invalid options, no usable client configuration, ErrExists or ErrNotFound. Without it, invalid
// options panic, because a loop that silently runs zero times is an outage nobody sees, and the other
// errors are logged.
//
// Let err be a variable of its own, not a named result of the function that has the loop: a return
// within the loop sets the result first, and then leaves the loop, which sets it to nil.
func WithError(err *error) Option {
	return func(o *options) {
		o.err = err
		if err == nil {
			o.fault("WithError: the pointer is nil")
		}
	}
}

func (o *options) fault(format string, args ...any) {
	o.faults = append(o.faults, fmt.Errorf(format, args...))
}

// newOptions returns the options with their defaults, and all that is wrong with them.
func newOptions(ctx context.Context, opts []Option) (*options, error) {
	return newOptionsOf(ctx, opts, groupOptions{})
}

// newOptionsOf returns the options with their defaults, which for those of a group are those of group, and all that is
// wrong with them.
func newOptionsOf(ctx context.Context, opts []Option, group groupOptions) (*options, error) {
	o := &options{
		group:        group,
		fieldManager: "leasehold",
		duration:     15 * time.Second,
		log:          slog.Default(),
		hooks: hooks{
			clock:     systemClock{},
			chance:    rand.N[time.Duration],
			shareFrom: fewLeases + 1,
			memory:    &processMemory,
		},
	}
	if ctx == nil {
		o.fault("the context is nil")
	}
	for i, opt := range opts {
		if opt == nil {
			o.fault("option %d of %d is nil", i+1, len(opts))
			continue
		}
		opt(o)
	}
	if o.renewDeadline == 0 {
		o.renewDeadline = o.duration / 10 * 8
	}
	if o.renewInterval == 0 {
		o.renewInterval = o.duration / 5
	}
	o.validate()
	if o.faults != nil {
		return o, fmt.Errorf("leasehold: %w", errors.Join(o.faults...))
	}
	return o, nil
}

func (o *options) validate() {
	if o.name == "" {
		o.fault("no lease: WithLease names it")
	} else if wrong := validation.IsDNS1123Subdomain(o.longestName()); wrong != nil {
		o.fault("lease name %q: %s", o.longestName(), strings.Join(wrong, "; "))
	}
	if o.slots > 0 && o.createMode == CreateNew {
		o.fault("WithSlots and CreateNew are mutually exclusive")
	}
	if o.slots > 0 && o.prioritized {
		o.fault("WithSlots and WithPriority are mutually exclusive")
	}
	if o.slots > 0 && o.reclaim {
		o.fault("WithSlots and WithReclaim are mutually exclusive")
	}
	if o.namespace != "" {
		if wrong := validation.IsDNS1123Label(o.namespace); wrong != nil {
			o.fault("namespace %q: %s", o.namespace, strings.Join(wrong, "; "))
		}
	}
	if !utf8.ValidString(o.identity) {
		o.fault("identity %q: want valid UTF-8, as the API server would store another", o.identity)
	}
	if n := len(o.fieldManager); n == 0 || n > 128 {
		o.fault("field manager %q: want 1 to 128 characters, not %d", o.fieldManager, n)
	}
	if strings.ContainsFunc(o.fieldManager, func(r rune) bool { return !unicode.IsPrint(r) }) {
		o.fault("field manager %q: want printable characters", o.fieldManager)
	}
	for key, value := range o.labels {
		if wrong := validation.IsQualifiedName(key); wrong != nil {
			o.fault("label %q: %s", key, strings.Join(wrong, "; "))
		}
		if wrong := validation.IsValidLabelValue(value); wrong != nil {
			o.fault("label %s=%q: %s", key, value, strings.Join(wrong, "; "))
		}
	}
	if w := o.owner; w != nil && (w.APIVersion == "" || w.Kind == "" || w.Name == "" || w.UID == "") {
		o.fault("owner %s %s %q, uid %q: want apiVersion, kind, name and uid", w.APIVersion, w.Kind, w.Name, w.UID)
	}
	if o.reclaim && o.identity == "" {
		o.fault("WithReclaim: want WithIdentity with an identity that no other process has")
	}
	if o.client != nil && o.config != nil {
		o.fault("WithClient and WithRESTConfig: want one of them")
	}
	if o.createMode < AutoCreate || o.createMode > UseExisting {
		o.fault("create mode %d: want AutoCreate, CreateNew or UseExisting", o.createMode)
	}
	if o.newBackOff != nil && o.newBackOff() == nil {
		o.fault("WithBackOff: the function returns nil")
	}
	o.validateGroup()
	d, r, i := o.duration, o.renewDeadline, o.renewInterval
	if d < time.Second || d%time.Second != 0 || d > maxDuration {
		o.fault("want 1s <= duration (%v) <= %v, in whole seconds", d, maxDuration)
	}
	if i <= 0 || i > r/2 {
		o.fault("want 0 < renew interval (%v), 2 x interval <= renew deadline (%v)", i, r)
	} else if i < shortestDelay {
		o.fault("want renew interval (%v) >= %v", i, shortestDelay)
	}
	if r > d/10*9 {
		o.fault("want renew deadline (%v) <= 0.9 x duration (%v)", r, d)
	}
}

// longestName returns the name of the Lease, or that of the last slot.
func (o *options) longestName() string {
	if o.slots > 0 {
		return slotName(o.name, o.slots-1)
	}
	return o.name
}

// maxDuration is what fits in the int32 of leaseDurationSeconds.
const maxDuration = (1<<31 - 1) * time.Second

// locate returns where the Lease is and, unless there is a client, how to connect to its API server.
func (o *options) locate() (namespace string, config *rest.Config, err error) {
	if namespace = o.namespace; namespace == "" {
		if namespace, err = defaultNamespace(); err != nil {
			return "", nil, err
		}
	}
	if config = o.config; o.client == nil && config == nil {
		config, err = defaultConfig()
	}
	return namespace, config, err
}

// reportEnd reports how a loop over ctx ended. c is nil where there was no campaign. The end of ctx is what the
// caller wanted, and is not logged.
func (o *options) reportEnd(ctx context.Context, c *campaign, err error) {
	switch {
	case o.err != nil:
		*o.err = err
	case err == nil || errors.Is(err, context.Cause(ctx)):
	case c != nil:
		c.log.error("campaign ended", "error", err)
	default:
		o.log.Error("campaign ended", "lease", o.name, "error", err)
	}
}

// between returns a random duration in [low, high).
func (o *options) between(low, high time.Duration) time.Duration {
	if high <= low {
		return low
	}
	return low + o.hooks.chance(high-low)
}

// fraction returns a random number in [0, 1).
func (o *options) fraction() float64 { return float64(o.hooks.chance(time.Hour)) / float64(time.Hour) }
