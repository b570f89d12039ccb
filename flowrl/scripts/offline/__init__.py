"""Offline training of any algorithm, with test budgets and their controls."""

from flowrl.scripts.offline._algorithms import entry as entry
from flowrl.scripts.offline._finished import (
    load_agent as load_agent,
    options_of as options_of,
    trained_learner as trained_learner,
)
from flowrl.scripts.offline._groups import CandidateOptions as CandidateOptions, FlowOptions as FlowOptions
from flowrl.scripts.offline._options import (
    Config as Config,
    check as check,
    defaults as defaults,
    from_flat as from_flat,
    is_auto as is_auto,
    last_value as last_value,
    parse as parse,
    refuse_below_one as refuse_below_one,
)
from flowrl.scripts.offline._program import (
    extended as extended,
    length_unit as length_unit,
    load_data as load_data,
    main as main,
    played_again as played_again,
    protocol as protocol,
    replays as replays,
    same_data as same_data,
    score_unit as score_unit,
    treated as treated,
    with_chosen_budget as with_chosen_budget,
)
