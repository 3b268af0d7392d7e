package main

import (
	"bufio"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/leasehold-go/leasehold"
)

func spreadCommand() *command {
	var o spreadOptions
	return &command{
		name:  "spread",
		args:  "GROUP [FLAGS] -- COMMAND [ARGUMENT...]",
		short: "Run a command for each key of this process's share",
		long: `
The keys are shared out among all processes that spread the same group, and the command runs once for each key that
this process owns, with its own process group, until the process is asked to stop. At most one command runs for a key,
in all processes together. Members that join take over only what balance needs; the keys of one that leaves or crashes
go to the others.

When a key is to move, the processes of its command receive SIGTERM, and SIGKILL after --grace-period; the key is given
on when all of them have ended. If the member's Lease is not renewed in time they receive SIGKILL before another can own
the key, and at once if it is lost otherwise. A command that ends gives its key back, which is given out again after a
pause, longer each time that the command fails. SIGTERM or SIGINT asks the tool to stop: all commands receive SIGTERM,
as for a move. The rules of "leasehold run" about descendants and the watchdog apply to each command; standard input is
empty, and other signals are not passed on.

The environment of a command has LEASEHOLD_KEY, LEASEHOLD_GROUP, LEASEHOLD_NAMESPACE, LEASEHOLD_IDENTITY,
LEASEHOLD_LEASE (that of this member), and LEASEHOLD_FENCING_TOKEN: a number that grows with every new owner of the
key, by which a store can refuse late writes.

Exit codes: 0 asked to stop, and all keys were given back; 125 leasehold failed or wrong usage; 126 the command cannot
be executed; 127 it was not found.`,
		examples: `
# Each tenant has one importer, on one of the replicas
leasehold spread importers --keys acme,globex,initech -- sh -c './import --tenant "$LEASEHOLD_KEY"'

# Keys from a file, one a line
leasehold spread importers --keys-from /etc/tenants -- ./import

# 16 workers over all replicas, numbered from 0
leasehold spread workers --buckets 16 -- ./worker`,
		flags: o.flags,
		run: func(t *tool, args []string, dash int) error {
			switch {
			case dash < 0:
				return usagef(`missing "--" before COMMAND, as in: spread GROUP -- COMMAND`)
			case dash == len(args):
				return usagef(`missing COMMAND after "--"`)
			case dash == 0:
				return usagef("missing GROUP: its name is required")
			}
			group, err := oneLease(args[:dash])
			if err != nil {
				return err
			}
			keys, err := o.complete(t)
			if err != nil {
				return err
			}
			return t.spread(&o, group, keys, args[dash:])
		},
	}
}

type spreadOptions struct {
	timing
	stopping
	keys     []string
	keysFrom string
	buckets  int
	identity string
	weight   int
	listen   string
}

func (o *spreadOptions) flags(flags *pflag.FlagSet) {
	flags.StringSliceVar(&o.keys, "keys", nil, "the keys, as a,b,c")
	flags.StringVar(&o.keysFrom, "keys-from", "", "a `file` with the keys, one a line; empty lines do not count")
	flags.IntVar(&o.buckets, "buckets", 0, "share out the numbers from 0 to `n`-1")
	flags.IntVar(&o.weight, "weight", 1, "how large this process's share is, compared with that of others")
	flags.StringVarP(&o.identity, "identity", "i", "",
		"the identity of this member (default <$POD_NAME or host name>_<uuid>)")
	o.stopping.flags(flags)
	o.timing.flags(flags)
	flags.StringVar(&o.listen, "listen", "",
		"address of an HTTP server with /healthz for a liveness probe, /metrics for Prometheus, and /leases for JSON")
}

const (
	maxBuckets = 65536 // keys that --buckets may ask for
	maxWeight  = 1000  // the library's limit
)

// complete checks the flags, and returns the keys.
func (o *spreadOptions) complete(t *tool) (keys []string, err error) {
	o.timing.complete()
	if err := o.stopping.complete(o.timing); err != nil {
		return nil, err
	}
	given := 0
	for _, flag := range []string{"keys", "keys-from", "buckets"} {
		if o.changed(flag) {
			given++
		}
	}
	switch {
	case o.weight < 1 || o.weight > maxWeight:
		return nil, usagef("--weight %d: want 1 to %d", o.weight, maxWeight)
	case given != 1:
		return nil, usagef("want one of --keys, --keys-from and --buckets")
	case o.changed("keys"):
		return o.keys, nil
	case o.changed("buckets"):
		if o.buckets < 1 || o.buckets > maxBuckets {
			return nil, usagef("--buckets %d: want 1 to %d", o.buckets, maxBuckets)
		}
		for i := range o.buckets {
			keys = append(keys, strconv.Itoa(i))
		}
		return keys, nil
	}
	file, err := os.Open(o.keysFrom)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return readKeys(file)
}

// readKeys returns the lines of r that are not empty.
func readKeys(r io.Reader) (keys []string, err error) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if key := strings.TrimSpace(lines.Text()); key != "" {
			keys = append(keys, key)
		}
	}
	return keys, lines.Err()
}

// options returns the library's options.
func (o *spreadOptions) options(t *tool, group string) ([]leasehold.Option, error) {
	opts := append(o.timing.options(), leasehold.WithLease(group), leasehold.WithFieldManager("leasehold"),
		leasehold.WithWeight(o.weight), leasehold.WithLogger(t.log))
	if o.identity != "" {
		opts = append(opts, leasehold.WithIdentity(o.identity))
	}
	where, err := t.cluster.options()
	if err != nil {
		return nil, err
	}
	monitor := new(leasehold.Monitor)
	if o.listen != "" {
		if err := serve(o.listen, monitor); err != nil {
			return nil, err
		}
	}
	return append(append(opts, leasehold.WithMonitor(monitor)), where...), nil
}

// errAskedBack is why a command ends whose key is to move.
var errAskedBack = errors.New("the key is given to another process, or the process was asked to stop")
