/*
 * The protocol by which a group of leasehold shares out a key: assigners give it, ask it back and fence members by
 * conditional writes, and members renew, report, lose their leases and acquire them again, through a network that
 * delays and loses, while a person deletes members' Leases. docs/safety.md says what is modelled, how to run it, and
 * what came out. lease.pml has the Lease itself in more detail.
 *
 * One process makes one move after another, so that every interleaving is one sequence of choices. A version of a
 * Lease is the number of the write that brought it, a term is named by the version that began it, and a generation of
 * the table is its version. Members' clocks are slow and assigners' are fast: the worst that is allowed.
 *
 * Each of these breaks the protocol, and gives two that work on the key, or a token that goes back:
 *   NOFENCE       silence for the duration ends a term, without a write that makes later renewals void
 *   WAIT=5        an assigner waits one tick less
 *   FROMREPLY     with WRITES=3: a member trusts its lease from the reply to a renewal
 *   NOWAIT        a key that was asked back is given on before its owner has reported
 *   CANCELLED     a member reports that a key is over when its session has ended, before its work has returned
 *   RETURNBYKEY   a key that was returned is free whichever grant was returned
 *   NOTERM        a grant names the member and not its term
 *   OLDVIEW       a view from before a term began counts as its end
 *   NODELETEDWAIT with DELETES=1: a term ends when its Lease was deleted, though its member may not know
 */

#ifndef N
#define N 2             /* members */
#endif
#ifndef A
#define A 2             /* assigners: two believe that they are named, of which the first watches the time */
#endif
#ifndef TABLES
#define TABLES 2        /* writes of the table */
#endif
#ifndef WRITES
#define WRITES 2        /* writes of members' Leases: renewals, acquisitions, fences, deletions */
#endif
#ifndef DELETES
#define DELETES 0       /* how many of them are deletions by a person */
#endif

#define SLOW 4
#define FAST 5
#ifndef TICKS
#define TICKS 2
#endif
#define R (TICKS * SLOW)
#define D (TICKS * FAST)
#ifndef WAIT
#define WAIT D
#endif

#define NONE 255

/* What the table says of the key. */
typedef Entry {
	byte owner;
	byte uid;       /* the owner's Lease */
	byte term;
	byte seen;      /* the version of the owner's Lease that showed the term to the one who gave the key */
	byte given;     /* the generation */
	byte asked      /* the generation that asked it back, or 0 */
};
Entry table[TABLES + 1];
byte gen = 0;           /* the newest; generation 0 is counted as 1 in given, asked and reports */
#define GEN(v) (v + 1)

/* What a member reports by a renewal. */
typedef Report {
	byte term;
	byte gen;       /* of the table that it goes by; 0 for none */
	bool running;   /* the key was asked back, and its work has not returned */
	byte returned   /* the generation of a grant that was returned without being asked back; 0 for none */
};

/* A member's Lease. */
typedef Lease {
	byte version;
	byte uid;       /* 0 if there is none */
	byte term;      /* 0 if nobody holds it */
	Report report
};
Lease lease[N];
byte writes = 0, deletes = DELETES;

mtype = { renew, acquire };

typedef Member {
	byte term;      /* 0 while it has none */
	byte trust;     /* time since the last renewal known to be good was sent */
	byte uid;       /* of its Lease */
	byte view;      /* the table that it has seen last */
	bool goes;      /* it has gone by that in this term */
	bool running;   /* its work has not returned */
	bool stopping;  /* the key was asked back */
	byte grant;     /* the generation of what it runs, or ran last */
	byte returned;
	/* the request under way */
	bool used;
	bool landed;    /* it took effect; at is the version that it brought */
	mtype kind;
	byte at;        /* first the version that it is conditional on */
	byte gotUid;    /* the uid of the Lease when it took effect */
	byte age;       /* time since it was sent */
	Report report
};
Member m[N];

/* What an assigner has seen of a member's Lease. */
typedef Sight {
	Lease lease;
	byte since;     /* for how long it has seen no change */
	byte missing    /* for how long it has known that the Lease that the table names does not exist */
};
typedef Assigner { Sight sees[N] };
Assigner a[A];

byte token = 0;
byte i, j, k;           /* scratch */

#define TRUSTS(x) (m[x].term != 0 && m[x].trust < R)
#define OWNS(x) (m[x].running && TRUSTS(x))
#define ENTRY table[gen]
#define SIGHT a[i].sees[ENTRY.owner]
/* Assigner x knows that the Lease of member y, which the table names, does not exist any more. */
#define MISSES(x, y) (ENTRY.owner == y && a[x].sees[y].lease.uid != ENTRY.uid && \
	a[x].sees[y].lease.version > ENTRY.seen)

inline later(x, d, most) { if :: x + d > most -> x = most :: else -> x = x + d fi }

#define COPY(to, from) \
	to.term = from.term; to.gen = from.gen; to.running = from.running; to.returned = from.returned
#define CLEAR(r) r.term = 0; r.gen = 0; r.running = false; r.returned = 0

inline tick() {
	for (k : 0 .. N - 1) {
		if
		:: m[k].term != 0 -> later(m[k].trust, SLOW, R)
		:: else
		fi;
		if
		:: m[k].used -> later(m[k].age, SLOW, R)
		:: else
		fi;
		for (j : 0 .. A - 1) {
			if
			:: j == 0 && a[j].sees[k].lease.term != 0 -> later(a[j].sees[k].since, FAST, D)
			:: else
			fi;
			if
			:: j == 0 && MISSES(j, k) -> later(a[j].sees[k].missing, FAST, D)
			:: else
			fi
		}
	}
}

/* Member i loses its term: its work ends with it, or nobody counts it any more. */
inline lose() {
	m[i].term = 0; m[i].trust = 0; m[i].goes = false; m[i].running = false; m[i].stopping = false; m[i].grant = 0;
	m[i].returned = 0
}

inline clearRequest() {
	m[i].used = false; m[i].landed = false; m[i].kind = renew;
	m[i].at = 0; m[i].gotUid = 0; m[i].age = 0;
	CLEAR(m[i].report)
}

inline send(what) {
	m[i].used = true; m[i].kind = what; m[i].at = lease[i].version; m[i].age = 0;
	if
	:: what == renew ->
		m[i].report.term = m[i].term; m[i].report.gen = (m[i].goes -> GEN(m[i].view) : 0);
		m[i].report.returned = m[i].returned;
#ifdef CANCELLED
		m[i].report.running = false
#else
		m[i].report.running = m[i].running && m[i].stopping
#endif
	:: else
	fi
}

/* The request of member i takes effect. */
inline land() {
	writes++;
	lease[i].version++;
	if
	:: m[i].kind == renew -> COPY(lease[i].report, m[i].report)
	:: m[i].kind == acquire ->
		lease[i].term = lease[i].version;
		if :: lease[i].uid == 0 -> lease[i].uid = lease[i].version :: else fi
	fi;
	m[i].at = lease[i].version;
	m[i].gotUid = lease[i].uid;
	m[i].landed = true
}

/* Member i hears that it took effect, by the reply or because it sees its Lease. */
inline hear() {
	if
	:: m[i].kind == acquire && m[i].age < R -> m[i].term = m[i].at; m[i].trust = m[i].age; m[i].uid = m[i].gotUid
	:: m[i].kind == renew && m[i].term != 0 && m[i].report.term == m[i].term ->
#ifdef FROMREPLY
		m[i].trust = 0
#else
		if :: m[i].age < m[i].trust -> m[i].trust = m[i].age :: else fi
#endif
	:: else
	fi;
	clearRequest()
}

#ifdef NOTERM
#define MINE(e) (e.owner == i)
#else
#define MINE(e) (e.owner == i && e.uid == m[i].uid && e.term == m[i].term)
#endif

/* Member i goes by the table that it has seen. */
inline apply() {
	m[i].goes = true;
	if
	:: MINE(table[m[i].view]) && !m[i].running && table[m[i].view].given != m[i].grant ->
		m[i].grant = table[m[i].view].given;
		if
		:: table[m[i].view].asked == 0 ->
			m[i].running = true; m[i].stopping = false; m[i].returned = 0;
			assert(GEN(m[i].view) > token); /* tokens grow */
			token = GEN(m[i].view)
		:: else /* it never begins */
		fi
	:: MINE(table[m[i].view]) && m[i].running && table[m[i].view].asked != 0 -> m[i].stopping = true
	:: else
	fi
}

/* Assigner i sees the Lease of member j. */
inline sight() {
	if
	:: a[i].sees[j].lease.version != lease[j].version ->
		a[i].sees[j].since = 0;
		a[i].sees[j].lease.version = lease[j].version; a[i].sees[j].lease.uid = lease[j].uid;
		a[i].sees[j].lease.term = lease[j].term;
		COPY(a[i].sees[j].lease.report, lease[j].report)
	:: else
	fi
}

bool ended, free;

/* Whether the entry that assigner i has seen is free to be given, by evidence that stays true. */
inline judge() {
	ended = false; free = false;
	if
	:: ENTRY.owner == NONE -> free = true
	:: else ->
		if
		:: SIGHT.lease.uid == ENTRY.uid && SIGHT.lease.term != ENTRY.term &&
#ifndef OLDVIEW
		   SIGHT.lease.version > ENTRY.seen &&
#endif
		   true -> ended = true
		:: SIGHT.lease.uid != ENTRY.uid && SIGHT.lease.version > ENTRY.seen &&
#ifndef NODELETEDWAIT
		   SIGHT.missing >= D &&
#endif
		   true -> ended = true
#ifdef NOFENCE
		:: SIGHT.lease.uid == ENTRY.uid && SIGHT.lease.term == ENTRY.term && SIGHT.since >= WAIT -> ended = true
#endif
		:: else
		fi;
		if
		:: ended -> free = true
		:: !ended && SIGHT.lease.uid == ENTRY.uid && SIGHT.lease.term == ENTRY.term &&
		   SIGHT.lease.report.term == ENTRY.term && ENTRY.asked != 0 && SIGHT.lease.report.gen >= ENTRY.asked &&
		   !SIGHT.lease.report.running -> free = true
		:: !ended && SIGHT.lease.uid == ENTRY.uid && SIGHT.lease.term == ENTRY.term &&
		   SIGHT.lease.report.term == ENTRY.term && ENTRY.asked == 0 &&
#ifdef RETURNBYKEY
		   SIGHT.lease.report.returned != 0 -> free = true
#else
		   SIGHT.lease.report.returned == ENTRY.given -> free = true
#endif
#ifdef NOWAIT
		:: ENTRY.asked != 0 -> free = true
#endif
		:: else
		fi
	fi
}

/* Assigner i writes the next table. */
inline begin() {
	table[gen + 1].owner = ENTRY.owner; table[gen + 1].uid = ENTRY.uid; table[gen + 1].term = ENTRY.term;
	table[gen + 1].seen = ENTRY.seen; table[gen + 1].given = ENTRY.given; table[gen + 1].asked = ENTRY.asked;
	gen++
}

/* What nobody will look at any more is forgotten, so that fewer states differ. */
inline tidy() {
	k = gen;
	for (i : 0 .. N - 1) {
		if :: m[i].term != 0 && m[i].trust >= R -> lose() :: else fi;
		if
		:: m[i].used && (!m[i].landed && lease[i].version != m[i].at ||
		   m[i].landed && m[i].kind == renew && m[i].report.term != m[i].term) -> clearRequest()
		:: else
		fi;
		if :: m[i].used && m[i].kind == renew && m[i].report.term != m[i].term -> m[i].age = R :: else fi;
		if :: m[i].view < k -> k = m[i].view :: else fi;
		for (j : 0 .. A - 1) {
			if
			:: gen == TABLES -> /* no table follows */
				a[j].sees[i].lease.version = 0; a[j].sees[i].lease.uid = 0; a[j].sees[i].lease.term = 0;
				CLEAR(a[j].sees[i].lease.report); a[j].sees[i].since = 0; a[j].sees[i].missing = 0
			:: else ->
#ifndef NOFENCE
				if :: a[j].sees[i].lease.version != lease[i].version -> a[j].sees[i].since = 0 :: else fi;
#endif
				if :: MISSES(j, i) :: else -> a[j].sees[i].missing = 0 fi
			fi
		}
	}
	if
	:: gen == TABLES -> /* no report counts any more */
		for (i : 0 .. N - 1) {
			CLEAR(lease[i].report);
			m[i].returned = 0; m[i].report.gen = 0; m[i].report.running = false; m[i].report.returned = 0
		}
	:: else
	fi;
	for (i : 0 .. TABLES) {
		if
		:: i < k ->
			table[i].owner = 0; table[i].uid = 0; table[i].term = 0; table[i].seen = 0; table[i].given = 0;
			table[i].asked = 0
		:: else -> break
		fi
	}
}

#define PICK(x, n) x = 0; do :: x < n - 1 -> x++ :: break od

active proctype world() {
	atomic {
		/* All members hold their Leases, and the first has the key. */
		for (i : 0 .. N - 1) {
			lease[i].version = 1; lease[i].uid = 1; lease[i].term = 1;
			m[i].term = 1; m[i].uid = 1; m[i].goes = true; m[i].kind = renew;
			for (j : 0 .. A - 1) {
				a[j].sees[i].lease.version = 1; a[j].sees[i].lease.uid = 1; a[j].sees[i].lease.term = 1
			}
		}
		table[0].owner = 0; table[0].uid = 1; table[0].term = 1; table[0].seen = 1; table[0].given = 1;
		m[0].running = true; m[0].grant = 1; token = 1;
		i = 0; j = 0; k = 0
	}
	do
	:: atomic { tick(); tidy(); i = 0; j = 0; k = 0 }
#if DELETES > 0
	:: atomic { /* a person deletes a member's Lease */
		deletes > 0 && writes < WRITES;
		PICK(i, N);
		if
		:: lease[i].uid != 0 ->
			lease[i].version++; lease[i].uid = 0; lease[i].term = 0;
			CLEAR(lease[i].report);
			writes++; deletes--
		:: else
		fi;
		tidy(); i = 0; j = 0; k = 0
	   }
#endif
	:: atomic { /* a member, or its request, moves */
		PICK(i, N);
		if
		/* It goes by the table that it has seen, or by a later one. */
		:: TRUSTS(i) && (!m[i].goes || m[i].view < gen) ->
			do :: m[i].view < gen -> m[i].view++; m[i].goes = false :: break od;
			if :: !m[i].goes -> apply() :: else fi
		/* Its work returns. */
		:: OWNS(i) ->
			m[i].running = false;
			if :: !m[i].stopping -> m[i].returned = m[i].grant :: else -> m[i].stopping = false fi
		:: TRUSTS(i) && !m[i].used && lease[i].term == m[i].term -> send(renew)
		:: m[i].term == 0 && !m[i].used -> send(acquire)
		/* The request arrives, however late. */
		:: m[i].used && !m[i].landed && writes < WRITES -> land()
		:: m[i].landed -> hear()
		/* The request or its reply is lost. */
		:: m[i].used -> clearRequest()
		/* It sees that its Lease does not show its term, or it crashes. */
		:: m[i].term != 0 -> lose()
		:: else
		fi;
		/* At most one member has the key: its work has not returned, and it trusts its lease. */
		for (k : 0 .. N - 1) { for (j : k + 1 .. N - 1) { assert(!(OWNS(k) && OWNS(j))) } }
		tidy(); i = 0; j = 0; k = 0
	   }
	:: atomic { /* an assigner moves; all that it decides holds of the table as it is, because its write demands that */
		gen < TABLES;
		PICK(i, A);
		PICK(j, N);
		if
		:: a[i].sees[j].lease.version != lease[j].version -> sight()
		/* A member that was silent for its duration is fenced. */
		:: a[i].sees[j].lease.term != 0 && a[i].sees[j].since >= WAIT &&
		   a[i].sees[j].lease.version == lease[j].version &&
		   writes < WRITES ->
			lease[j].version++; lease[j].term = 0; writes++;
			sight()
		/* The key is given to member j. */
		:: a[i].sees[j].lease.term != 0 ->
			judge();
			if
			:: free ->
				begin();
				table[gen].owner = j; table[gen].uid = a[i].sees[j].lease.uid;
				table[gen].term = a[i].sees[j].lease.term;
				table[gen].seen = a[i].sees[j].lease.version; table[gen].given = GEN(gen); table[gen].asked = 0
			:: else
			fi;
			ended = false; free = false
		/* It is asked back. */
		:: j == 0 && ENTRY.owner != NONE && ENTRY.asked == 0 ->
			begin();
			table[gen].asked = GEN(gen)
		:: else
		fi;
		tidy(); i = 0; j = 0; k = 0
	   }
	od
}
