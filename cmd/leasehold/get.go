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
)

func getCommand() *command {
	s := selection{output: "table"}
	return &command{
		name:  "get",
		args:  "[LEASE...] [FLAGS]",
		short: "Show who holds leases",
		long: `
SINCE and RENEWED are how long ago the holder wrote that it acquired and last renewed the lease. The status is expired when
it has not renewed it for the lease's duration. All three compare the holder's clock with this machine's.`,
		examples: `
# All leases of the namespace
leasehold get

# Who leads?
leasehold get reconciler

# All leases of a team in all namespaces
leasehold get -A -l team=storage

# The holder alone, for a script
leasehold get reconciler -o json | jq -r .spec.holderIdentity`,
		flags: func(flags *pflag.FlagSet) {
			flags.TextVarP(&s.output, "output", "o", s.output, "`format` of what is shown: table, json, yaml or name")
			s.flags(flags)
		},
		run: func(t *tool, args []string, _ int) error {
			ctx, cancel := interruptible()
			defer cancel()
			sel, err := s.resolve(t, args)
			if err != nil {
				return err
			}
			leases, failed := sel.list(ctx)
			switch {
			case len(leases) == 0 && failed != nil:
			case len(leases) == 0 && s.output == "table":
				fmt.Fprintln(t.err, "No leases found"+sel.where()+".")
			default:
				err = printLeases(t.out, s.output, leases, time.Now(), s.all, len(args) != 1)
			}
			return errors.Join(failed, err)
		},
	}
}

// A selection is which leases to show, and how.
type selection struct {
	all      bool
	selector string
	output   format

	client    coordinationv1client.LeasesGetter
	namespace string   // "" for all
	names     []string // none for all
}

func (s *selection) flags(flags *pflag.FlagSet) {
	flags.BoolVarP(&s.all, "all-namespaces", "A", false, "the leases of all namespaces")
	flags.StringVarP(&s.selector, "selector", "l", "", "the leases with these labels, as team=storage,tier!=1")
}

// resolve returns the selection with what args and the common flags say.
func (s selection) resolve(t *tool, args []string) (selection, error) {
	s.names = args
	switch {
	case s.all && len(args) > 0:
		return s, usagef("--all-namespaces and the name of a lease: want one of them")
	case s.selector != "" && len(args) > 0:
		return s, usagef("--selector and the name of a lease: want one of them")
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

// where says in which namespace.
func (s selection) where() string {
	if s.namespace == "" {
		return ""
	}
	return " in namespace " + s.namespace
}

// list returns the leases, ordered by namespace and name. Those that could be read are returned with an error too.
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

// advise adds to an error what its reader can do about it.
func advise(err error, verb, namespace, name string) error {
	switch {
	case err == nil:
		return nil
	case apierrors.IsForbidden(err):
		kind, names := fmt.Sprintf("a Role in namespace %q", namespace), ""
		if namespace == "" {
			kind = "a ClusterRole"
		}
		if name != "" && verb != "create" {
			names = fmt.Sprintf(" resourceNames: [%q],", name)
		}
		return fmt.Errorf("%w; %s needs the rule {apiGroups: [%q], resources: [%q],%s verbs: [%q]}",
			err, kind, coordinationv1.GroupName, "leases", names, verb)
	case apierrors.IsNotFound(err) && strings.Contains(err.Error(), "leases"):
		return fmt.Errorf("no lease %s/%s", namespace, name)
	}
	return err
}
