package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"

	"github.com/leasehold-go/leasehold/internal/rights"
)

func getCommand() *command {
	var s selection
	out := output{kind: "table", text: "table"}
	var watch, noHeaders bool
	return &command{
		name:  "get",
		args:  "[LEASE...] [FLAGS]",
		short: "Show who holds leases",
		long: `
SINCE and RENEWED are how long ago the holder wrote that it acquired and last renewed the lease. The status is expired
when the holder has not renewed the lease for its duration. All three compare the holder's clock with this machine's.
With --watch each change is shown too: another holder, none, or an expiry; "leasehold watch" explains them. Renewals
are not shown. A lease may also be named as lease/NAME.

-o wide adds when the lease expires, the age of the Lease, the field manager that wrote its holder, the address that
the holder advertises, its priority, and who is to hold the lease next, if a standby has a priority or a release names
one.`,
		examples: `
# All leases of the namespace
leasehold get

# Who leads?
leasehold get reconciler

# All leases of a team in all namespaces
leasehold get -A -l team=storage

# The holder alone, for a script
leasehold get reconciler -o jsonpath='{.spec.holderIdentity}'`,
		flags: func(flags *pflag.FlagSet) {
			flags.TextVarP(&out, "output", "o", out, outputHelp)
			flags.BoolVarP(&watch, "watch", "w", false, "show the leases, then each change of a holder")
			flags.BoolVar(&noHeaders, "no-headers", false, "leave out the headers of a table")
			s.flags(flags)
		},
		run: func(t *tool, args []string, _ int) error {
			ctx, cancel := interruptible()
			defer cancel()
			sel, err := s.resolve(t, args)
			if err != nil {
				return err
			}
			p := &printer{output: out, namespaces: s.all, noHeaders: noHeaders, list: len(args) != 1}
			if watch {
				return t.getWatch(ctx, sel, p)
			}
			leases, failed := sel.list(ctx)
			switch {
			case len(leases) == 0 && failed != nil:
			case len(leases) == 0 && (out.kind == "table" || out.kind == "wide"):
				fmt.Fprintln(t.logs, "No leases found"+sel.where()+".")
			default:
				err = p.print(t.out, leases, time.Now())
			}
			return errors.Join(failed, err)
		},
	}
}

// getWatch prints the leases as they are, and each one that changes.
func (t *tool) getWatch(ctx context.Context, sel selection, p *printer) error {
	if _, err := sel.list(ctx); err != nil {
		return err // a lease that is named must exist
	}
	p.list = false
	var failed error
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	err := sel.observe(ctx, t, func(e event) {
		if e.lease == nil {
			return // deleted before it was seen
		}
		l := *e.lease
		if e.Status == missing {
			l.Spec.HolderIdentity, l.Spec.AcquireTime, l.Spec.RenewTime = nil, nil, nil
		}
		if err := p.printRows(t.out, []row{{l, e.Status}}, time.Now()); err != nil && failed == nil {
			failed = err
			cancel()
		}
	})
	return errors.Join(err, failed)
}

// A selection is which leases to show.
type selection struct {
	all      bool
	selector string
	group    string

	client    coordinationv1client.LeasesGetter
	namespace string   // "" for all
	names     []string // none for all
}

func (s *selection) flags(flags *pflag.FlagSet) {
	flags.BoolVarP(&s.all, "all-namespaces", "A", false, "select the leases of all namespaces")
	flags.StringVarP(&s.selector, "selector", "l", "", "select the leases with these labels, as team=storage,tier!=1")
	flags.StringVar(&s.group, "group", "", "select the leases of a group, as spread and the library make them")
}

// resolve returns the selection with the names in args, and the client and namespace of the common flags.
func (s selection) resolve(t *tool, args []string) (selection, error) {
	switch {
	case s.all && len(args) > 0:
		return s, usagef("--all-namespaces and the name of a lease are mutually exclusive")
	case s.selector != "" && len(args) > 0:
		return s, usagef("--selector and the name of a lease are mutually exclusive")
	}
	if s.group != "" {
		if len(args) > 0 || s.selector != "" {
			return s, usagef("--group excludes --selector and the names of leases")
		}
		if _, err := leaseName(s.group); err != nil {
			return s, err
		}
		s.selector = groupLabel + "=" + s.group
	}
	s.names = nil
	for _, arg := range args {
		name, err := leaseName(arg)
		if err != nil {
			return s, err
		}
		s.names = append(s.names, name)
	}
	if _, err := labels.Parse(s.selector); err != nil {
		return s, usagef("--selector: %w", err)
	}
	client, err := t.cluster.client()
	if err != nil {
		return s, err
	}
	s.client = client
	if !s.all {
		if s.namespace, err = t.cluster.namespace(); err != nil {
			return s, err
		}
	}
	return s, nil
}

// where returns the namespace as part of a sentence.
func (s selection) where() string {
	if s.namespace == "" {
		return ""
	}
	return " in namespace " + s.namespace
}

// list returns the leases, ordered by namespace and name. With an error it returns those that could be read.
func (s selection) list(ctx context.Context) ([]coordinationv1.Lease, error) {
	var leases []coordinationv1.Lease
	var errs []error
	for _, name := range s.names {
		l, err := s.client.Leases(s.namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			errs = append(errs, advise(err, "get", s.namespace, name))
			continue
		}
		leases = append(leases, *l)
	}
	if len(s.names) == 0 {
		list, err := s.client.Leases(s.namespace).List(ctx, metav1.ListOptions{LabelSelector: s.selector})
		if err != nil {
			return nil, advise(err, "list", s.namespace, "")
		}
		leases = list.Items
	}
	slices.SortFunc(leases, func(a, b coordinationv1.Lease) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return leases, errors.Join(errs...)
}

// advise adds to an error the remedy, if there is one.
func advise(err error, verb, namespace, name string) error {
	switch {
	case err == nil:
		return nil
	case rights.Missing(err, verb):
		return rights.Rule(err, namespace, name, verb)
	case apierrors.IsNotFound(err) && strings.Contains(err.Error(), "leases"):
		return fmt.Errorf("no lease %s/%s", namespace, name)
	}
	return err
}
